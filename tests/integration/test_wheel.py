"""The wheel, installed alone in a clean environment, from an empty folder."""

import os
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from dynamics.core.config import REPOSITORY_ROOT
from dynamics.evaluation.guards.rules import GUARDS
from tests.serving import free_port

Dynamics = Callable[..., str]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(command, cwd=REPOSITORY_ROOT, capture_output=True, check=True)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel and, from this one, what it depends on."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    # Lines of the *.pth files in there, of an editable install too, are not followed.
    others = [entry for entry in sys.path if entry.endswith("site-packages")]
    (packages / "dependencies.pth").write_text("\n".join(others))
    script = folder / "bin" / "dynamics"
    script.write_text(
        f"#!{folder}/bin/python\nfrom dynamics.cli.start import main\nmain()\n", encoding="utf-8"
    )
    script.chmod(0o755)
    return folder / "bin" / "python"


@pytest.fixture
def dynamics(python: Path, tmp_path: Path) -> Dynamics:
    """The command in an empty folder; its output."""

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [python.with_name("dynamics"), *arguments],
            cwd=tmp_path,
            env=clean(),
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def clean() -> dict[str, str]:
    left_out = ("PYTHONPATH", "VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if name not in left_out}


def test_the_wheel_takes_one_name_and_brings_configs_and_assets(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"dynamics"}
    configs = {path.name for path in (REPOSITORY_ROOT / "configs").iterdir()}
    assert configs == {Path(n).name for n in names if n.startswith("dynamics/configs/")}
    assert {
        "dynamics/py.typed",
        "dynamics/assets/tiny-4x4/model.safetensors",
        "dynamics/serving/page/index.html",
        "dynamics/cluster/ray_jobs/bootstrap.py",
    } <= set(names)


@pytest.mark.slow
def test_commands_work_from_an_empty_folder(dynamics: Dynamics, tmp_path: Path) -> None:
    assert dynamics("--version").startswith("dynamics ")
    assert "all is well" in dynamics("doctor", "--set", f"serve.port={free_port()}")
    assert '"fits": true' in dynamics("plan", "--json")
    planned = dynamics("plan", "--config", "configs/chameleon7b.yaml", "--cluster", "8xp5.4xlarge")
    assert "GPU hours" in planned
    dynamics("film", "film", "--pairs", "12")
    assert "pairs from" in dynamics("ingest", "film/clips", "--out", "p.parts", "--spacing", "3")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["film", "p.parts"]


@pytest.mark.slow
@pytest.mark.cluster
def test_a_run_is_made_on_ray_and_served(python: Path, dynamics: Dynamics, tmp_path: Path) -> None:
    port = free_port()
    small = [
        "labelled.num_pairs=64", "labelled.num_heldout=12", "pool.num_pairs=48",
        "train.first_steps=4", "train.round_steps=4", "train.batch_size=8",
        "evaluate.best_of=[1, 2]", "evaluate.num_best_of_items=4", f"serve.port={port}",
        f"guards.accept=[{', '.join(GUARDS)}]",
    ]  # fmt: skip
    assert "round 1: FDP" in dynamics(
        "bootstrap", "--anyway", "--rounds", "1", "--run-dir", "run", *small
    )
    assert "report:" in dynamics("report", "run")
    server = subprocess.Popen(
        [python.with_name("dynamics"), "serve", "run"],
        cwd=tmp_path, env=clean(), stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert server.stdout is not None
    assert any("curl" in line for line in server.stdout)
    assert httpx.get(f"http://127.0.0.1:{port}/readyz").json()["round"] == 1
    server.terminate()
    assert server.wait(60) == 0
