"""Every command of docs/tutorials/own-videos.md, in a copy of the checkout, at a small size."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from dynamics.core.config import REPOSITORY_ROOT
from tests.serving import free_port

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

SMALL = {"--pairs 9000": "--pairs 240", "--labels 1000": "--labels 120"}
MORE = {
    "pretrain": "--set pretrain.codes_a_side=[6] --set pretrain.trial_steps=5 "
    "--set pretrain.tokenizer_steps=200 --set pretrain.steps=20",
    "bootstrap": "--anyway rounds=1 train.first_steps=5 train.round_steps=5 serve.enabled=false "
    "evaluate.best_of=[1,2] evaluate.num_best_of_items=8 guards.accept=[action_sensitivity]",
}
"""What makes a command short."""
BLOCKED = {"check": 1, "bootstrap": 4}
"""Status of what finds that five steps teach little."""


def commands() -> list[str]:
    """The lines of the tutorial's shell blocks."""
    text = (REPOSITORY_ROOT / "docs" / "tutorials" / "own-videos.md").read_text()
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clone")
    for name in ("dynamics", "ray_jobs", "configs", "pyproject.toml"):
        source = REPOSITORY_ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, folder / name)
    return folder


def test_every_command_of_the_tutorial_runs(clone: Path) -> None:
    pytest.importorskip("minigrid", reason="needs pip install minigrid")
    server: tuple[subprocess.Popen[bytes], int] | None = None
    seen = []
    try:
        for line in commands():
            for large, small in SMALL.items():
                line = line.replace(large, small)
            program, *rest = shlex.split(line)
            verb = rest[0] if program == "dynamics" else program
            seen.append(verb)
            if verb == "pip":
                continue
            if verb == "curl":
                assert server is not None
                while not (clone / "runs" / "my-grid" / "example-rollout.json").exists():
                    assert server[0].poll() is None  # it writes the file once it has answered
                    time.sleep(0.5)
                _asks(clone, line.replace(":8000", f":{server[1]}"))
            elif verb in ("annotate", "serve"):
                port = free_port()
                where = ["--port", str(port)] if verb == "annotate" else [f"serve.port={port}"]
                process = subprocess.Popen(_started([*rest, *where]), **_in(clone))
                server = (process, port)
                _answers(process, f"http://127.0.0.1:{port}{_READY[verb]}")
                if verb == "annotate":
                    _ends(process)
                    server = None
            else:
                command = _started([*rest, *MORE.get(verb, "").split()])
                done = subprocess.run(command, **_in(clone), check=False)
                assert done.returncode in {0, BLOCKED.get(verb, 0)}, line
    finally:
        if server:
            _ends(server[0])
    assert seen == [
        *("pip", "film", "ingest", "annotate", "new", "pretrain", "check", "bootstrap"),
        *("evaluate", "serve", "curl"),
    ]
    assert (clone / "grid" / "sheet.html").is_file()


_READY = {"annotate": "/v1/state", "serve": "/readyz"}


def _started(words: list[str]) -> list[str]:
    return [sys.executable, "-m", "dynamics.cli.main", *words]


def _in(clone: Path) -> dict[str, object]:
    path = os.pathsep.join([str(clone), os.environ.get("PYTHONPATH", "")])
    return {"cwd": clone, "env": os.environ | {"PYTHONPATH": path, "PYTHONSAFEPATH": ""}}


def _answers(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        assert process.poll() is None
        try:
            if httpx.get(url, timeout=10).is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise AssertionError(f"{url} does not answer")


def _asks(clone: Path, line: str) -> None:
    reply = subprocess.run(shlex.split(line), cwd=clone, capture_output=True, check=True)
    assert b"image" in reply.stdout, reply.stdout[:500]


def _ends(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)
    process.wait(timeout=120)
