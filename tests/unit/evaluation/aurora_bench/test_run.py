"""`dynamics evaluate aurora-bench` as a person runs it, beside `dynamics evaluate RUN`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dynamics.cli.main import app
from dynamics.core.config import REPOSITORY_ROOT
from dynamics.core.errors import UserError
from tests.unit.evaluation.chat_server import ChatServer, Reply, scored

KEY = "sk-very-secret"


def evaluate(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dynamics.cli.main", "evaluate", *map(str, arguments)],
        cwd=REPOSITORY_ROOT,
        env={**os.environ, "COLUMNS": "200", "OPENAI_API_KEY": KEY},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def assert_one_line_error(done: subprocess.CompletedProcess[str], said: str) -> None:
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert said in done.stderr


def test_help_teaches_both_uses():
    done = evaluate("--help")
    assert done.returncode == 0
    text = " ".join(done.stdout.split())
    assert "dynamics evaluate RUN [--controls]" in text
    assert "aurora-bench --data DIR --model RUN" in text
    shown = CliRunner().invoke(app, ["evaluate", "aurora-bench", "--help"])
    assert "--judge-url" in shown.output


def test_a_first_word_that_is_no_command_is_a_run(tmp_path):
    assert_one_line_error(evaluate("--controls", tmp_path), f"{tmp_path} holds no run")
    for arguments in ([str(tmp_path)], [str(tmp_path), "--controls"], ["run", str(tmp_path)]):
        error = CliRunner().invoke(app, ["evaluate", *arguments]).exception
        assert isinstance(error, UserError)
        assert f"{tmp_path} holds no run" in str(error)


@pytest.mark.slow
def test_a_model_is_measured_once_and_judged_within_the_budget(bench, tmp_path):
    out = ("--data", bench, "--model", "tiny", "--out", tmp_path / "out")
    first = evaluate("aurora-bench", *out)
    assert first.returncode == 0, first.stderr
    assert "nearer target, VQ" in first.stdout
    assert "CLIP-I, CLIP-T and nearer target (CLIP) left out: put openai/clip" in first.stdout
    second = evaluate("aurora-bench", *out)
    assert second.stdout.splitlines()[-1].startswith("every part was there")

    with ChatServer([scored(4, 8), Reply("dunno"), scored(6, 2)]).up() as server:
        judge = ("--judge-url", server.url, "--judge-model", "m", "--judge-budget", 3)
        judged = evaluate("aurora-bench", *out, "--json", *judge)
    assert judged.returncode == 0, judged.stderr
    assert len(server.requests) == 3
    assert server.authorization == [f"Bearer {KEY}"] * 3
    found = json.loads(judged.stdout)
    assert found["judge"] == {
        "model": "m",
        "prompt": "1",
        "calls": 3,
        "judged": 2,
        "over_budget": 1,
        "unparsable": 1,
    }
    mean = {name: found["metrics"][name]["model"]["mean"] for name in ("judge", "judge_worst")}
    assert mean["judge"]["num_items"] == 2
    # ag 4, kubric 2; with ag's unparsable one as 0: ag 2, kubric 2.
    assert (mean["judge"]["value"], mean["judge_worst"]["value"]) == (3, 2)
    assert "judge: 4 cases, 0 known already, 3 calls with 6 pictures" in judged.stderr
    stored = "".join(path.read_text() for path in (tmp_path / "out" / "judge").iterdir())
    assert KEY not in judged.stdout + judged.stderr + stored


def test_the_copy_needs_no_model_and_json_is_all_that_is_printed(bench, tmp_path):
    given = ["--data", str(bench), "--model", "copy", "--out", str(tmp_path), "--json"]
    done = CliRunner().invoke(app, ["evaluate", "aurora-bench", *given])
    found = json.loads(done.stdout)
    assert found["metrics"]["change_iou"]["copy"]["mean"]["value"] == 0
    assert all("message" in json.loads(line) for line in done.stderr.splitlines())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data", "nowhere", "--model", "copy"], "test.json does not exist"),
        (["--data", "BENCH", "--model", "nothing"], "--model nothing is no run folder"),
        (["--data", "BENCH", "--model", "tiny", "--device", "tpu"], "--device tpu is unknown"),
        (
            ["--data", "BENCH", "--model", "tiny", "--best-of", "4", "--temperature", "0"],
            "4 samples need a temperature above 0",
        ),
        (["--data", "BENCH", "--model", "copy", "--judge-url", "http://h/v1"], "--judge-model"),
        (
            ["--data", "BENCH", "--model", "copy", "--judge-url", "h", "--judge-model", "m"],
            "--judge-url must look like",
        ),
        (["--data", "BENCH", "--model", "copy", "--clip", "nowhere"], "nowhere is not a folder"),
    ],
)
def test_bad_input_is_one_line(bench, tmp_path, arguments, said):
    given = [str(bench) if argument == "BENCH" else argument for argument in arguments]
    command = ["evaluate", "aurora-bench", *given, "--out", str(tmp_path)]
    error = CliRunner().invoke(app, command).exception
    assert isinstance(error, UserError)
    assert said in str(error)
    assert "\n" not in str(error)


def test_a_judge_that_refuses_the_key_is_one_line(bench, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    given = ["--data", str(bench), "--model", "copy", "--out", str(tmp_path)]
    with ChatServer([Reply(status=401, body=KEY.encode())]).up() as server:
        judge = ["--judge-url", server.url, "--judge-model", "m", "--judge-key-env", "MY_KEY"]
        done = CliRunner().invoke(app, ["evaluate", "aurora-bench", *given, *judge])
    assert server.authorization == [f"Bearer {KEY}"]
    assert isinstance(done.exception, UserError)
    assert "answers 401" in str(done.exception)
    assert KEY not in done.output + str(done.exception)


@pytest.mark.slow
def test_the_real_pairs_are_scored_once_with_every_offline_metric(real_bench, tmp_path):
    arguments = ("aurora-bench", "--data", real_bench, "--model", "tiny", "--out", tmp_path)
    done = evaluate(*arguments)
    assert done.returncode == 0, done.stderr
    assert "magicbrush 10, ag 10, something 10, whatsup 10, kubric 10" in done.stdout
    assert evaluate(*arguments).stdout.splitlines()[-1].startswith("every part was there")
