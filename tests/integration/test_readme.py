"""Commands of README.md that no other test runs, as they stand there, at a small size.

tests/unit/test_documents.py has the table of all commands with their tests.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
import torch

from dynamics.core.config import REPOSITORY_ROOT as ROOT
from dynamics.core.config import LoopConfig
from dynamics.models.convert_vqgan import CHAMELEON_VQGAN
from dynamics.models.image_tokenizers.vqgan import Vqgan, load_vqgan
from dynamics.storage.run_folder import RunFolder, read_json
from tests.contracts.checkpoints import save_ckpt
from tests.integration.test_bootstrap import COMMAND, arguments, wait_until
from tests.serving import free_port

pytestmark = pytest.mark.slow

BIN = Path(sys.executable).parent
PASSED = {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}


def command(start: str) -> str:
    """The README's command that begins so, without its comment."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", "").splitlines()]
    (found,) = (line for line in lines if line.removeprefix(".venv/bin/").startswith(start))
    return re.sub(r"\s+#.*", "", found)


@pytest.fixture
def home() -> Iterator[Path]:
    """A home folder; all that was started with it ends with the test."""
    folder = Path(tempfile.mkdtemp(prefix="h-", dir="/tmp"))
    yield folder
    for process in psutil.process_iter(["environ"]):
        if (process.info["environ"] or {}).get("HOME") == str(folder):
            process.kill()
    shutil.rmtree(folder)


def started(script: str, home: Path, cwd: Path = ROOT) -> "subprocess.Popen[str]":
    """A shell in which only the environment's commands are known, for a user with this home."""
    return subprocess.Popen(
        ["bash", "-ec", script.replace(".venv/bin", str(BIN))],
        cwd=cwd,
        env={"PATH": os.environ["PATH"], "HOME": str(home), **PASSED},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def done(process: "subprocess.Popen[str]") -> str:
    """What a shell said that ended well."""
    said, _ = process.communicate(timeout=900)
    assert process.returncode == 0, said
    return said


def answers(process: "subprocess.Popen[str]", url: str) -> httpx.Response:
    """The reply of a server, once it is up."""
    found: list[httpx.Response] = []

    def asked() -> bool:
        assert process.poll() is None, process.communicate()[0]
        try:
            found.append(httpx.get(url, timeout=10))
        except httpx.TransportError:
            return False
        return found[-1].is_success

    wait_until(asked, url)
    return found[-1]


@pytest.fixture(scope="module")
def run(small: LoopConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of `make bootstrap`, in one process, and what it said."""
    folder = tmp_path_factory.mktemp("readme")
    given = " ".join(arguments(small, folder / "runs" / "tabletop")[len(COMMAND) :])
    given += " --rounds 1"
    line = f"{command('make bootstrap')} VENV={sys.prefix} -o {sys.prefix}/.installed"
    return folder, done(started(f'{line} ARGS="--no-ray {given}"', folder))


def test_mlflow_opens_the_page_that_a_run_names(run: tuple[Path, str], home: Path) -> None:
    folder, said = run
    named = re.search(r"then (http://127\.0\.0\.1:5000)/#/experiments/(\d+)/runs/(\w+)", said)
    assert named
    port = f"{free_port()}"
    line = command("mlflow ui").replace("5000", port)
    server = started(f"exec {line} --workers 1", home, folder)
    url = named[1].replace("5000", port)
    assert "<title>MLflow</title>" in answers(server, url).text
    found = httpx.get(f"{url}/ajax-api/2.0/mlflow/runs/get", params={"run_id": named[3]})
    assert found.json()["run"]["info"]["experiment_id"] == named[2]


def test_a_decoder_of_the_published_sizes_is_converted(tmp_path: Path, home: Path) -> None:
    torch.manual_seed(0)
    model = Vqgan(CHAMELEON_VQGAN).requires_grad_(False)
    save_ckpt(model, tmp_path / "vqgan.ckpt")
    done(started(command("dynamics convert-vqgan"), home, tmp_path))
    loaded = load_vqgan(tmp_path / "CHECKPOINT")
    assert loaded is not None
    weights = loaded.state_dict()
    assert all((weights[name] == found).all() for name, found in model.state_dict().items())


def test_labels_are_measured_beside_transformers(tmp_path: Path, home: Path) -> None:
    shutil.copytree(ROOT / "benchmarks", tmp_path / "benchmarks")  # its results lie in it
    (tmp_path / "dynamics").symlink_to(ROOT / "dynamics")
    said = done(started(f"{command('python -m benchmarks')} --rounds 1", home, tmp_path))
    assert '"equal": "all ids"' in said


def test_a_job_of_the_own_cluster_makes_a_run(
    small: LoopConfig, tmp_path: Path, home: Path
) -> None:
    api, run_dir = free_port(), tmp_path / "run"
    ports = f"--port {free_port()} --dashboard-port {api}"
    given = " ".join(arguments(small, run_dir)[len(COMMAND) :])
    lines = [
        command(". .venv/bin/activate"),
        command("export RAY_AUTH_MODE=token"),
        f"export RAY_API_SERVER_ADDRESS=http://127.0.0.1:{api}",
        f"{command('ray start').replace('8', '2')} {ports}",
        f"{command('ray job submit')} --rounds 1 {given} serve.enabled=false",
    ]
    said = done(started("\n".join(lines), home))
    assert "succeeded" in said
    folder = RunFolder(run_dir)
    assert [report.round_id for report in folder.reports(1)] == [0, 1]
    assert read_json(folder.origin)["hardware"] == "Ray cluster of 1 node, 2 CPUs, 0 GPUs"
