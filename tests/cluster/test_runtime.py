import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from dynamics.core.config import CLUSTER_ROOT, ClusterConfig
from dynamics.core.errors import UserError
from ray_jobs import runtime
from tests.runs import descendants

LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "0" * 24 + "01000000"}
"""127.0.0.1, the same in IPv6, and ::1, as Linux writes them."""


def full_disk() -> None:
    raise UserError("disk full: /data needs 10 bytes")


def bug() -> None:
    raise KeyError("oops")


@pytest.mark.cluster
@pytest.mark.usefixtures("local_ray")
def test_a_user_error_of_a_worker_arrives_as_one_line() -> None:
    import ray

    with (
        pytest.raises(UserError, match=r"^disk full: /data needs 10 bytes$"),
        runtime.on_ray(ClusterConfig()),
    ):
        ray.get(ray.remote(full_disk).remote())


@pytest.mark.cluster
@pytest.mark.usefixtures("local_ray")
def test_a_bug_of_a_worker_keeps_its_traceback() -> None:
    import ray

    with pytest.raises(ray.exceptions.RayTaskError), runtime.on_ray(ClusterConfig()):
        ray.get(ray.remote(bug).remote())


@pytest.mark.cluster
@pytest.mark.slow
def test_a_module_in_the_users_folder_shadows_none_of_the_workers(tmp_path: Path) -> None:
    """A Ray of its own: the session's was started in the checkout."""
    (tmp_path / "torch.py").write_text("raise SystemExit('not torch')\n")
    script = (
        "import ray\n"
        "from dynamics.core.config import CLUSTER_ROOT, ClusterConfig\n"
        "from ray_jobs import runtime\n"
        "runtime.prepare_environment()\n"
        "runtime.ensure_ray(ClusterConfig(num_cpus=2))\n"
        "def places():\n"
        "    import sys, torch\n"
        "    return sys.path\n"
        "print(*ray.get(ray.remote(places).remote()), sep='\\n')\n"
        "runtime.stop_ray()\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(CLUSTER_ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(tmp_path) not in done.stdout.splitlines()


def command_line(process: int) -> bytes:
    with suppress(OSError):  # ended meanwhile
        return Path(f"/proc/{process}/cmdline").read_bytes()
    return b""


def listening(processes: set[int]) -> dict[int, str]:
    """Ports at which processes accept TCP connections, and the address of each."""
    files = set()
    for process in processes:
        with suppress(OSError):  # ended meanwhile
            files |= {os.readlink(file) for file in Path(f"/proc/{process}/fd").iterdir()}
    found = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == "0A" and f"socket:[{inode}]" in files:
                address, _, port = local.partition(":")
                found[int(port, 16)] = address
    return found


@pytest.mark.cluster
@pytest.mark.usefixtures("local_ray")
@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="no list of sockets in /proc")
def test_nobody_else_reaches_the_ray_that_is_started_here() -> None:
    own = {one for one in descendants(os.getpid()) if b"ray" in command_line(one)}
    ports = listening(own | {os.getpid()})
    assert len(ports) > 5
    assert set(ports.values()) <= LOOPBACK
    said = set()
    for port in listening(own):
        with suppress(httpx.HTTPError):  # not HTTP
            url = f"http://127.0.0.1:{port}/api/job_agent/jobs/"
            said.add(httpx.post(url, json={"entrypoint": "id"}, timeout=5).status_code)
    assert 401 in said  # the agent that starts jobs
    assert said <= {401, 404, 405}
    [folder] = map(Path, runtime._local_folders)
    assert folder.stat().st_mode & 0o777 == 0o700
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_socket():
            assert os.environ["RAY_AUTH_TOKEN"].encode() not in path.read_bytes()


def test_a_relative_run_folder_counts_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert runtime.resolve_run_dir(Path("runs/x")) == tmp_path / "runs" / "x"
    assert runtime.resolve_run_dir(Path("/data/x")) == Path("/data/x")


def test_in_a_jobs_copy_a_relative_run_folder_outlives_the_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "working_dir_files" / "_ray_pkg_0123"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("DYNAMICS_HOME", raising=False)
    assert runtime.resolve_run_dir(Path("runs/x")) == tmp_path / "dynamics-runs" / "runs" / "x"
    monkeypatch.setenv("DYNAMICS_HOME", "/shared/home")
    assert runtime.resolve_run_dir(Path("runs/x")) == Path("/shared/home/runs/x")
