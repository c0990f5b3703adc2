from pathlib import Path

import pytest

from dynamics.core.config import ClusterConfig
from dynamics.core.errors import UserError
from ray_jobs import runtime


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
