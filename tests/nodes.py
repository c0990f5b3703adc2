"""Ray nodes on one machine that share nothing but the network.

A node lives in namespaces of its own: an empty file system lies over its home, its caches and
temporary files and over every place that a test hides, and its processes end together with it.
Nodes differ by address: 127.0.0.2, 127.0.0.3, ...
"""

import os
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from dynamics.core.config import REPOSITORY_ROOT

# All of a node's processes end with its first, and that with the process that started the node.
_NAMESPACES = ["setpriv", "--pdeathsig", "KILL"]
_NAMESPACES += ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
_INIT = """
for place in {hidden}; do mount -t tmpfs none $place || exit 1; done
mkdir -p {home}/.ray {home}/tmp
cat > {home}/.ray/auth_token
exec {ray} start --block --num-cpus={num_cpus} --node-ip-address={address} \
  --object-store-memory=200000000 --temp-dir={home}/ray \
  --min-worker-port=0 --max-worker-port=0 --dashboard-agent-listen-port=0 {role}
"""


@cache
def why_no_nodes() -> str:
    """The reason why this process may make no namespaces; empty when it may."""
    try:
        done = subprocess.run([*_NAMESPACES, "true"], capture_output=True, text=True)
    except FileNotFoundError as error:
        return str(error)
    return done.stderr.strip()


@dataclass(frozen=True)
class Node:
    """A Ray node that runs."""

    address: str
    process: "subprocess.Popen[str]"
    environment: Mapping[str, str]

    def popen(self, command: Sequence[str], **options: Any) -> "subprocess.Popen[str]":
        """Start a command that sees what the node sees, with the node's environment."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        inside = f"nsenter --target={children.split()[0]} --mount --pid --wd={REPOSITORY_ROOT}"
        environment = {**self.environment}
        return subprocess.Popen([*inside.split(), *command], env=environment, text=True, **options)

    def run(self, command: Sequence[str]) -> "subprocess.CompletedProcess[str]":
        """Run such a command to its end, 10 minutes at most."""
        with self.popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            out, err = process.communicate(timeout=600)
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def kill(self) -> None:
        """End all of the node's processes at once, as a loss of power does; its disk is lost."""
        self.process.kill()
        self.process.wait()


class Nodes:
    """A cluster that grows; its first node is the head, on which drivers run.

    Args:
        hidden: folders of this machine that no node sees.
        environment: variables of all nodes, e.g. credentials of a store.
    """

    def __init__(self, hidden: Sequence[Path], environment: Mapping[str, str]) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="n-", dir="/tmp"))  # sockets need a short path
        self._hidden = [self.home, Path("/dev/shm"), *hidden]
        self._token = secrets.token_hex(32)  # what `ray get-auth-token --generate` writes
        self._port = _free_port()
        self._nodes: list[Node] = []
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "TMPDIR": f"{self.home}/tmp",
            "PYTHONPATH": str(REPOSITORY_ROOT),
            "RAY_ADDRESS": f"127.0.0.2:{self._port}",
            "RAY_AUTH_MODE": "token",
            "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
            **environment,
        }

    @property
    def head(self) -> Node:
        """The first node."""
        return self._nodes[0]

    @property
    def alive(self) -> list[Node]:
        """Nodes that were not killed."""
        return [node for node in self._nodes if node.process.poll() is None]

    def add(self, num_cpus: int) -> Node:
        """Start a node and wait until it is up."""
        address = f"127.0.0.{len(self._nodes) + 2}"
        head = f"--head --port={self._port} --include-dashboard=false"
        head += f" --ray-client-server-port={_free_port()}"  # its default is for one cluster
        script = _INIT.format(
            hidden=shlex.join(map(str, self._hidden)),
            home=self.home,
            ray=Path(sys.executable).with_name("ray"),
            num_cpus=num_cpus,
            address=address,
            role=f"--address={self._environment['RAY_ADDRESS']}" if self._nodes else head,
        )
        process = subprocess.Popen(
            [*_NAMESPACES, "sh", "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=self._environment,
            text=True,
        )
        node = Node(address, process, self._environment)
        self._nodes.append(node)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(self._token)
        process.stdin.close()
        said = []
        while not said or "Ray runtime started" not in said[-1]:
            said.append(process.stdout.readline())
            assert said[-1], "".join(said)
        return node

    def stop(self) -> None:
        """End all nodes."""
        for node in self._nodes:
            node.kill()
        shutil.rmtree(self.home)


@contextmanager
def nodes(
    hidden: Sequence[Path] = (), environment: Mapping[str, str] | None = None
) -> Iterator[Nodes]:
    """A cluster without nodes, whose nodes end with the body."""
    cluster = Nodes(hidden, environment or {})
    try:
        yield cluster
    finally:
        cluster.stop()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
