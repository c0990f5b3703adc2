"""The command itself, as a user types it: killed, resumed, repeated, served."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import httpx
import pytest

from dynamics.core.config import REPOSITORY_ROOT, LoopConfig
from dynamics.storage.run_folder import RunFolder
from tests.runs import LocalRun, descendants, results
from tests.serving import copy_of

COMMAND = [sys.executable, str(REPOSITORY_ROOT / "ray_jobs" / "bootstrap.py")]


def arguments(small: LoopConfig, run_dir: Path) -> list[str]:
    """The command-line form of the `small` config."""
    return [
        *COMMAND,
        "--config",
        str(REPOSITORY_ROOT / "tests" / "test-3x3.yaml"),
        "--run-dir",
        str(run_dir),
        f"model.base={small.model.base}",
        f"train.first_steps={small.train.first_steps}",
        f"train.round_steps={small.train.round_steps}",
        f"serve.port={free_port()}",
    ]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run(command: list[str], cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=600)


def wait_until(condition: Callable[[], object], what: str, timeout_s: float = 300.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s:.0f} s for {what}"
        time.sleep(0.1)


def alive(pids: set[int]) -> set[int]:
    """Zombies count as dead: their parent has yet to look at them."""
    found = set()
    for pid in pids:
        try:
            state = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state != "Z":
            found.add(pid)
    return found


def is_agent(pid: int) -> bool:
    """Ray's own monitoring processes, which need a minute or two to notice that Ray is gone."""
    return b"Agent" in Path("/proc", str(pid), "cmdline").read_bytes()


@pytest.fixture(scope="module")
def killed_and_resumed(
    small: LoopConfig, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """A real run with Ray that got kill -9 while it labelled, then the same command again."""
    run_dir = tmp_path_factory.mktemp("ray-run") / "run"
    command = arguments(small, run_dir)
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    attempts = run_dir / "ledger" / "attempts" / "round-01"
    wait_until(lambda: list(attempts.glob("*.parquet")), "the first label")
    workers = {pid for pid in descendants(driver.pid) if not is_agent(pid)}
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    assert not (run_dir / "ledger" / "rounds").exists()
    wait_until(lambda: not alive(workers), "Ray to die with its driver", 60)
    resumed = run(command)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    return run_dir, resumed.stdout


@pytest.mark.cluster
def test_a_killed_run_on_ray_equals_an_unbroken_one_in_one_process(
    killed_and_resumed: tuple[Path, str], local_run: LocalRun
) -> None:
    found, expected = results(killed_and_resumed[0]), results(local_run.folder)
    assert sorted(found) == sorted(expected)
    assert [name for name in found if found[name] != expected[name]] == []


@pytest.mark.cluster
def test_the_last_lines_say_where_everything_is(killed_and_resumed: tuple[Path, str]) -> None:
    run_dir, output = killed_and_resumed
    trained = r"train IDM and FDP, round 1, (\d+) of \1, in .+, loss IDM \S+ FDP \S+\n"
    assert re.search(trained, output)
    assert f"report:    {run_dir}/report.html" in output
    assert f"mlflow ui --backend-store-uri sqlite:///{run_dir}/mlflow.db" in output
    assert f"dynamics serve {run_dir}" in output
    assert re.search(r"FDP.*\n.*labels.*success", output), output  # headings are on two lines
    assert re.search(r"then http://127\.0\.0\.1:5000/#/experiments/\d+/runs/\w+\n", output)
    assert "Traceback" not in output


@pytest.mark.cluster
def test_a_resumed_run_has_one_mlflow_run_a_round(killed_and_resumed: tuple[Path, str]) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{killed_and_resumed[0] / 'mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name == "dynamics-bootstrap"]
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(r.data.tags.get("round", "parent") for r in runs) == ["0", "1", "parent"]


@pytest.mark.cluster
def test_the_same_command_again_does_nothing(
    small: LoopConfig, killed_and_resumed: tuple[Path, str]
) -> None:
    run_dir = killed_and_resumed[0]
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*") if path.is_file()}
    again = run(arguments(small, run_dir))
    assert again.returncode == 0, again.stderr
    assert "all 1 rounds are done; nothing to do" in again.stdout
    after = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*") if path.is_file()}
    changed = {path.name for path in after if after[path] != before.get(path)}
    assert changed <= {".lock", "run.json"}  # the port of this call is another one


@pytest.mark.cluster
def test_serve_keeps_the_generator_up_until_interrupted(
    small: LoopConfig, killed_and_resumed: tuple[Path, str]
) -> None:
    command = [*arguments(small, killed_and_resumed[0]), "--serve"]
    port = next(text for text in command if text.startswith("serve.port=")).partition("=")[2]
    # A test run in the background of a script inherits an ignored Ctrl-C.
    restore = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=restore)
    assert server.stdout is not None
    lines = []
    for line in server.stdout:
        lines.append(line)
        if "curl" in line:
            break
    reply = httpx.get(f"http://127.0.0.1:{port}/readyz")
    assert reply.json() == {"status": "ready", "round": 1, "refused": None}
    server.send_signal(signal.SIGINT)
    assert server.wait(60) == 0
    assert any("nothing to do" in line for line in lines)


@pytest.mark.cluster
@pytest.mark.parametrize(
    "proxy_ready_s",
    [
        pytest.param(None, id="no answer in time", marks=pytest.mark.slow),
        # Serve gives a proxy a minute, three times here.
        pytest.param("0.001", id="no proxy in time", marks=pytest.mark.slow),
    ],
)
def test_a_service_that_does_not_start_costs_no_round(
    proxy_ready_s: str | None,
    small: LoopConfig,
    local_run: LocalRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = RunFolder(copy_of(local_run.folder, tmp_path / "run"))
    (folder.round(0) / "report.json").unlink()  # round 0 is then committed and served once more
    command = arguments(small, folder.root)
    if proxy_ready_s is None:
        command.append("serve.deadline_s=0.001")
    else:
        monkeypatch.setenv("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", proxy_ready_s)
    done = run([*command, "serve.each_round=true"])
    assert done.returncode == 0, done.stdout + done.stderr
    said = _said(done)
    assert [line.partition(":")[0] for line in said] == [
        "round 0 is not served",
        "round 1 is not served",
    ], done.stderr
    assert said[1].endswith(f"dynamics serve {folder.root} tries again")
    assert f"report:    {folder.root}/report.html" in done.stdout
    assert results(folder.root) == results(local_run.folder)
    again = run(command)
    assert (again.returncode, again.stderr) == (0, "")
    assert "all 1 rounds are done; nothing to do" in again.stdout
    asked_for = run([*command, "--serve"])
    assert asked_for.returncode == 2
    (line,) = _said(asked_for)
    assert line.startswith("error: round 1 is not served: ")


def _said(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Lines of stderr, without the one that Ray's core writes when it is told its log level."""
    return [line for line in done.stderr.splitlines() if "logging.cc" not in line]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (["--rounds", "0"], "command line: rounds: Input should be greater than or equal to 1"),
        (["filter.scor=sum_logprob"], "did you mean filter.score?"),
        (["labelled.num_pairs=0"], "num_pairs must be at least 1"),
        (["pool.path=/does/not/exist"], "/does/not/exist does not exist"),
        (
            ["pool.path=.", "labelled={dataset: epic, path: /not/here}"],
            "labelled data /not/here does not exist; check labelled.path",
        ),
        (["--config", "missing.yaml"], "config file missing.yaml does not exist"),
        (["--serve", "--no-ray"], "--serve needs Ray Serve"),
        (["rounds"], "command line: 'rounds' must look like section.key=value"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    tmp_path: Path, bad: list[str], message: str
) -> None:
    done = run([*COMMAND, "--run-dir", str(tmp_path / "run"), *bad], cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_run_folder_of_another_config_is_refused(
    small: LoopConfig, local_run: LocalRun, tmp_path: Path
) -> None:
    command = [*arguments(small, tmp_path / "run"), "--no-ray"]
    with RunFolder(tmp_path / "run").claimed(small.model_copy(update={"seed": 7})):
        pass
    done = run(command)
    assert done.returncode == 2
    assert "seed was 7, now 0" in done.stderr


def test_a_gpu_that_is_not_there_is_said_before_anything_is_filmed(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("it is there")
    done = run([*COMMAND, "--run-dir", str(tmp_path), "--no-ray", "model.device=cuda"])
    assert done.returncode == 2
    assert re.fullmatch(r"error: model.device=cuda, and torch sees no GPU on .*\n", done.stderr)
    assert not (tmp_path / "data").exists()


def test_a_run_folder_in_use_is_status_3(small: LoopConfig, tmp_path: Path) -> None:
    command = [*arguments(small, tmp_path), "--no-ray"]
    with RunFolder(tmp_path).claimed(small.model_copy(update={"run_dir": tmp_path})):
        done = run(command)
    assert done.returncode == 3
    assert f"in use by process {os.getpid()}" in done.stderr


def test_errors_are_json_where_lines_are(tmp_path: Path) -> None:
    done = run([*COMMAND, "--log", "json", "--run-dir", str(tmp_path), "pool.path=nowhere"])
    assert done.returncode == 2
    line = json.loads(done.stderr)
    assert line["level"] == "error"
    assert "nowhere" in line["message"]


def test_overrides_may_stand_anywhere_and_the_config_can_be_printed(tmp_path: Path) -> None:
    done = run([*COMMAND, "seed=3", "--rounds", "2", "--print-config", "train.batch_size=7"])
    assert done.returncode == 0, done.stderr
    assert "seed: 3" in done.stdout
    assert "rounds: 2" in done.stdout
    assert "batch_size: 7" in done.stdout
