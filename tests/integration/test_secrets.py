"""Keys in the environment of a run reach nothing that it writes, prints or answers."""

import signal
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from dynamics.core.config import LoopConfig
from dynamics.core.progress import silent
from dynamics.exports import EXPORTS, export_run
from dynamics.report.page import write_page
from dynamics.storage.run_folder import RunFolder
from tests.runs import Driver
from tests.serving import free_port, png

KEYS = {
    name: f"planted-{number}-c0ffee5eed{number}"
    for number, name in enumerate(
        [
            "SERVICE_KEY",
            "AWS_SECRET_ACCESS_KEY",
            "MLFLOW_TRACKING_PASSWORD",
            "HF_TOKEN",
            "OPENAI_API_KEY",
        ]
    )
}


@pytest.mark.cluster
@pytest.mark.slow
def test_five_keys_of_the_environment_are_in_nothing_that_a_run_leaves(
    small: LoopConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    for name, key in KEYS.items():
        monkeypatch.setenv(name, key)
    run_dir, port = tmp_path / "run", free_port()
    overrides = [
        f"model.base={small.model.base}",
        f"train.first_steps={small.train.first_steps}",
        f"train.round_steps={small.train.round_steps}",
        f"serve.port={port}",
        "serve.api_key_env=SERVICE_KEY",
    ]
    driver = Driver("", run_dir, overrides, "--serve")
    driver.wait_until(lambda: "serving until Ctrl-C" in driver.said)
    request = {"image": png(), "action": "push the red ring left"}
    said = []
    for key in (KEYS["SERVICE_KEY"], KEYS["SERVICE_KEY"] + "x", KEYS["HF_TOKEN"]):
        for path in ("/v1/predict", "/metrics", "/v1/models"):
            reply = httpx.post(
                f"http://127.0.0.1:{port}{path}",
                json=request,
                headers={"authorization": f"Bearer {key}"},
                timeout=60,
            )
            said.append(f"{reply.headers} {reply.text}")
    assert "200" in str(httpx.get(f"http://127.0.0.1:{port}/readyz"))
    (ray,) = Path("/tmp").glob(f"ray-dynamics-{driver.process.pid}-*")
    found = files_with_a_key(ray)
    driver.process.send_signal(signal.SIGINT)
    assert driver.process.wait(timeout=60) == 0, driver.said
    folder = RunFolder(run_dir)
    write_page(folder)
    for form in EXPORTS:
        export_run(folder, form, tmp_path / "exports" / form, 1, silent)
    assert [*found, *files_with_a_key(tmp_path)] == []
    assert not any(key in text for text in said for key in KEYS.values())
    record_property("cases", len(KEYS))


def files_with_a_key(folder: Path) -> list[str]:
    """Files below a folder that hold a planted key, and its variable's name."""
    found = []
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            content = path.read_bytes()
            found += [f"{path}: {name}" for name, key in KEYS.items() if key.encode() in content]
    return found
