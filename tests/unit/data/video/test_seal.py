"""Attempts to get out of the process that reads hostile files."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from dynamics.data.video.sandbox import DecodeWorker, why_unsealed

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"),
    reason="no filter of system calls here; dynamics doctor says so",
)

ATTEMPTS = """
import ctypes, json, mmap, os, resource, signal, socket, sys, threading
from dynamics.data.video.seal import seal

libc = ctypes.CDLL(None, use_errno=True)
secret, victim, parent = sys.argv[1], sys.argv[2], int(sys.argv[3])
intel = os.uname().machine == "x86_64"

def call(name, *values):
    def attempt():
        if getattr(libc, name)(*values) == -1:
            raise OSError(ctypes.get_errno(), name)
    return attempt

def raw(number, *values):
    return call("syscall", number, *values)

attempts = {
    "read a file": lambda: open(secret).read(),
    "read a folder": lambda: os.listdir("/"),
    "read the parent's environment": lambda: open(f"/proc/{parent}/environ").read(),
    "read its own memory map": lambda: open("/proc/self/maps").read(),
    "open a handle": lambda: os.open(".", os.O_PATH),
    "write a file": lambda: open(victim + ".new", "w"),
    "append to a file": lambda: open(victim, "a"),
    "delete": lambda: os.unlink(victim),
    "rename": lambda: os.rename(victim, victim + ".moved"),
    "truncate": lambda: os.truncate(victim, 0),
    "change its mode": lambda: os.chmod(victim, 0o777),
    "link": lambda: os.link(victim, victim + ".link"),
    "symlink": lambda: os.symlink(victim, victim + ".symlink"),
    "make a folder": lambda: os.mkdir(victim + ".folder"),
    "make a pipe in the file system": lambda: os.mkfifo(victim + ".fifo"),
    "make memory that is a file": lambda: os.memfd_create("x"),
    "internet socket": lambda: socket.socket(),
    "local socket": lambda: socket.socket(socket.AF_UNIX),
    "packet socket": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
    "pair of sockets": socket.socketpair,
    "exec": lambda: os.execv("/bin/true", ["true"]),
    "spawn": lambda: os.posix_spawn("/bin/true", ["true"], {}),
    "fork": os.fork,
    "process that shares memory": raw(56 if intel else 220, 0x100 | signal.SIGCHLD, 0, 0, 0, 0),
    "kill the parent": lambda: os.kill(parent, signal.SIGKILL),
    "signal itself": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "trace the parent": call("ptrace", 16, parent, 0, 0),
    "read the parent's memory": call("process_vm_readv", parent, 0, 0, 0, 0, 0),
    "handle of the parent": lambda: os.pidfd_open(parent),
    "code in new memory": lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC),
    "more memory": lambda: resource.setrlimit(resource.RLIMIT_AS, (-1, -1)),
    "files of any size": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1)),
    "limits of the parent": lambda: resource.prlimit(parent, resource.RLIMIT_CPU, (1, 1)),
    "another user": lambda: os.setuid(1),
    "new namespaces": call("unshare", 0x10000000),
    "mount": call("mount", b"none", b"/tmp", b"tmpfs", 0, None),
    "change the root": lambda: os.chroot("/"),
    "filter anew": raw(317 if intel else 277, 1, 0, None),
    "io_uring": raw(425, 8, None),
    "bpf": raw(321 if intel else 280, 0, None, 0),
    "keys of the kernel": raw(250 if intel else 219, 0, 0),
    "terminal": lambda: os.ttyname(0),
    "host name": lambda: socket.sethostname("x"),
}
reason = seal()
if reason is not None:
    sys.exit(f"not sealed: {reason}")
outcomes = {}
for name, attempt in attempts.items():
    try:
        attempt()
        outcomes[name] = "did it"
    except OSError as error:
        outcomes[name] = error.errno
    except ValueError as error:  # Python's word for EPERM from setrlimit
        outcomes[name] = 1 if "not allowed" in str(error) else str(error)
thread = threading.Thread(target=lambda: outcomes.update(thread="did it"))
thread.start()
thread.join()
os.write(1, json.dumps(outcomes).encode())
"""


def test_nothing_gets_out_of_a_sealed_process(tmp_path: Path) -> None:
    secret, victim = tmp_path / "secret", tmp_path / "victim"
    secret.write_text("hunter2")
    victim.write_text("whole")
    arguments = [str(secret), str(victim), str(os.getpid())]
    done = subprocess.run(
        [sys.executable, "-c", ATTEMPTS, *arguments], capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    outcomes = json.loads(done.stdout)
    assert outcomes.pop("thread") == "did it"
    refused = {name for name, outcome in outcomes.items() if outcome == 1}
    assert refused == set(outcomes), outcomes
    assert len(refused) > 40
    assert sorted(tmp_path.iterdir()) == [secret, victim]
    assert victim.read_text() == "whole"


def test_a_decode_worker_is_sealed_and_holds_nothing_to_write_to() -> None:
    worker = DecodeWorker(memory_mb=512, timeout_s=20)
    status = Path(f"/proc/{worker.pid}/status").read_text()
    assert worker.unsealed is None
    assert why_unsealed(512) is None
    assert "Seccomp:\t2" in status
    assert "NoNewPrivs:\t1" in status
    opened = {os.readlink(one) for one in Path(f"/proc/{worker.pid}/fd").iterdir()}
    assert {name.partition(":")[0] for name in opened} <= {"socket", "pipe", "/dev/null"}
    worker.close()
