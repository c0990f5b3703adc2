"""A run behind HTTP without Ray, as a user types it."""

import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.runs import LocalRun
from tests.serving import copy_of, damage, free_port, png

COMMAND = """
import sys
from dynamics.cli.main import main
try:
    main()
finally:
    print("ray" in sys.modules)
"""


@pytest.mark.slow  # it loads everything anew
def test_one_process_without_ray_answers_until_interrupted(local_run: LocalRun) -> None:
    port = free_port()
    arguments = ["serve", str(local_run.folder), "--in-process", f"serve.port={port}"]
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, *arguments], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line == f"round 1 answers at http://127.0.0.1:{port}/\n"
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as asker:
            request = {"image": png(), "action": "push the red ring left", "n": 2}
            for _ in range(100):
                try:
                    assert asker.get("/readyz").json()["round"] == 1
                    break
                except httpx.ConnectError:
                    continue
            assert asker.post("/v1/predict", json=request).json()["round"] == 1
            assert asker.get("/").status_code == 200
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == "False\n"
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow  # it loads everything anew
def test_a_start_without_a_sound_round_is_one_line(local_run: LocalRun, tmp_path: Path) -> None:
    run = copy_of(local_run.folder, tmp_path / "run")
    for number in (0, 1):
        damage(run / "rounds" / f"round-{number:02d}" / "fdp")
    arguments = ["serve", str(run), "--in-process", f"serve.port={free_port()}"]
    done = subprocess.run(
        [sys.executable, "-m", "dynamics.cli.main", *arguments], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith(f"error: nothing of {run} can be served: round 1 is refused")
