"""The `dynamics` command as a person runs it: real processes, exit status, one-line errors."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import get_type_hints

import pytest
import typer
from typer.testing import CliRunner

from dynamics.cli.main import app
from dynamics.cli.shared import local
from dynamics.core.config import REPOSITORY_ROOT
from dynamics.core.config_file import load
from dynamics.core.registry import names
from dynamics.storage.files import write_bytes
from dynamics.storage.run_folder import RunFolder
from ray_jobs import bootstrap
from tests.made_data import write_webdataset
from tests.runs import LocalRun
from tests.serving import free_port
from tests.unit.report.stored import pool_labels, store_run

ROOT = REPOSITORY_ROOT
TEST_CONFIG = ROOT / "tests" / "test-3x3.yaml"


def dynamics(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dynamics.cli.main", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200", **environment},
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


@pytest.fixture
def run(tmp_path) -> Path:
    """A run folder that was claimed and has no round yet."""
    folder = RunFolder(tmp_path / "run")
    with folder.claimed(load(TEST_CONFIG)):
        pass
    return folder.root


def test_help_names_every_verb():
    done = dynamics("--help")
    assert done.returncode == 0
    for verb in ("bootstrap", "ingest", "film", "pretrain", "evaluate", "report", "doctor"):
        assert verb in done.stdout


@pytest.mark.parametrize(
    ("command", "registry"),
    [
        (["ingest"], "dynamics.data.video.sources:SOURCES"),
        (["export"], "dynamics.exports:EXPORTS"),
        (["evaluate", "aurora-bench"], "dynamics.models:FAMILIES"),
    ],
)
def test_help_lists_what_a_registry_holds(command, registry):
    assert ", ".join(names(registry)) in dynamics(*command, "--help").stdout


def test_help_names_types_as_people_do():
    def types(command, context):
        for name in command.list_commands(context) if hasattr(command, "list_commands") else ():
            inner = command.get_command(context, name)
            yield from types(inner, typer.Context(inner, parent=context))
        yield from (one.display_type(context) for one in command.params)

    command = typer.main.get_command(app)
    assert not {"<Any>", "<object>"}.intersection(types(command, typer.Context(command)))


def test_version_and_short_help_are_there():
    done = dynamics("--version")
    assert (done.returncode, done.stdout) == (0, f"dynamics {version('dynamics-bootstrap')}\n")
    assert dynamics("plan", "-h").stdout == dynamics("plan", "--help").stdout


def test_the_help_of_evaluate_shows_the_controls():
    said = " ".join(dynamics("evaluate", "-h").stdout.split())
    assert "dynamics evaluate RUN [--controls]" in said


def test_an_unknown_long_option_is_no_abbreviation(run):
    done = dynamics("bootstrap", "--round", "3")
    assert done.returncode == 2
    assert "'--round' is unknown; did you mean --rounds? known: --config, --rounds," in done.stderr
    assert "No such option: --contr" in dynamics("evaluate", run, "--contr").stderr


@pytest.mark.parametrize("columns", [60, 80])
def test_the_help_of_bootstrap_fits_into_a_narrow_terminal(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = bootstrap.parser().format_help().splitlines()
    assert [line for line in lines if len(line) > columns] == []


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("dynamics re", "report"),
        ("dynamics plan --con", "--config"),
        ("dynamics evaluate a", "aurora-bench"),
    ],
)
def test_the_shell_completes_verbs_and_options(typed, offered):
    # What the script of --install-completion asks of the command.
    asked = {"_DYNAMICS_COMPLETE": "complete_bash", "COMP_WORDS": typed}
    environment = {**asked, "COMP_CWORD": str(typed.count(" "))}
    done = CliRunner().invoke(app, prog_name="dynamics", env=environment)
    assert done.stdout.split() == [offered]


def test_no_argument_shows_the_help():
    assert "Your data" in dynamics().stdout


def test_ingest_takes_the_layouts_of_public_sets_and_names_them(tmp_path):
    write_webdataset(tmp_path / "shards")
    out = tmp_path / "pairs.parts"
    done = dynamics(
        "ingest", tmp_path / "shards", "--source", "webdataset", "--spacing", "4", "--out", out
    )
    assert done.returncode == 0, done.stderr
    assert "from 4 clips" in done.stdout
    assert_one_line_error(dynamics("ingest", tmp_path, "--source", "youtube"), "known: folder, ucf")


@pytest.mark.parametrize("verb", ["evaluate", "report", "serve"])
def test_a_folder_without_a_run_is_named(verb, tmp_path):
    assert_one_line_error(dynamics(verb, tmp_path), str(tmp_path))


def test_a_run_without_a_finished_round_cannot_be_evaluated(run):
    assert_one_line_error(dynamics("evaluate", run), "no finished round")


def test_an_unfinished_run_is_not_served(run):
    assert_one_line_error(dynamics("serve", run), "has not finished round 1")


def test_a_missing_video_folder_is_named(tmp_path):
    done = dynamics("ingest", tmp_path / "nothing", "--out", tmp_path / "pairs.parts")
    assert_one_line_error(done, "nothing")
    assert not (tmp_path / "pairs.parts").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["serve", "hdfs://lab/run"],
            "hdfs://lab/run is no place that can be used; give a path, or",
        ),
        (
            ["ingest", "gs://me:pw@lab/clips"],
            "give credentials in the environment, never in the URL",
        ),
        (["export", "run", "--as", "hf", "--out", "s3://lab/out"], "--out: s3://lab/out is not"),
        (["evaluate", "aurora-bench", "--data", "s3://b", "--model", "tiny"], "--data: s3://b is"),
        (["bootstrap", "--run-dir", "file:///runs"], "run_dir: file:///runs is no place"),
        (
            ["doctor", "--set", "model.base=hf://some/base"],
            "model.base: hf://some/base is no place",
        ),
        (["export", "run", "--as", "lerobt", "--out", "out"], "--as: 'lerobt' is unknown; did you"),
    ],
)
def test_an_address_or_a_wrong_name_is_one_line(arguments, said):
    assert_one_line_error(dynamics(*arguments), said)


def commands(group: typer.Typer) -> list[Callable[..., object]]:
    own = [info.callback for info in group.registered_commands if info.callback]
    return own + [c for info in group.registered_groups for c in commands(info.typer_instance)]


def test_every_path_on_a_command_line_is_checked():
    hints = [get_type_hints(c, include_extras=True).items() for c in commands(app)]
    paths = [(name, hint) for found in hints for name, hint in found if "pathlib" in str(hint)]
    assert len(paths) > 10
    assert not [name for name, hint in paths if hint.__metadata__[0].callback is not local]


def test_an_unknown_override_names_the_nearest_key():
    done = dynamics("doctor", "--set", "world.gird=3")
    assert_one_line_error(done, "did you mean world.grid?")


def test_doctor_is_content_with_this_environment():
    port = f"serve.port={free_port()}"
    done = dynamics("doctor", "--set", port)
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[-1] == (
        f"all is well; next: dynamics plan --set={port} (how long), dynamics bootstrap {port}"
    )


def test_doctor_names_what_is_amiss(tmp_path):
    (tmp_path / "test.json").write_text("{")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        own = (
            f"model.base={tmp_path}", "model.device=cuda", f"serve.port={port}",
            f"pool.path={tmp_path}", "labelled.dataset=aurora", f"labelled.path={tmp_path}",
            f"labelled.heldout_path={tmp_path / 'test.json'}",
        )  # fmt: skip
        done = dynamics("doctor", "--set", *" --set ".join(own).split(), CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 1
    assert f"no checkpoint in {tmp_path}" in done.stdout
    assert f"problem: port {port} on 127.0.0.1 is in use" in done.stdout
    assert "problem: model.device=cuda, and torch sees no GPU here" in done.stdout
    assert f"problem: video folder {tmp_path} holds no videos" in done.stdout
    assert f"problem: {tmp_path} has no data/TASK/train.json of AURORA" in done.stdout
    assert f"problem: {tmp_path / 'test.json'} is not valid JSON" in done.stdout
    assert "and no published sizes under that name" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("next: mend these")


def test_verify_finds_a_sound_run_sound(run):
    done = dynamics("verify", run)
    assert done.returncode == 0, done.stdout
    assert "are sound, and nothing is missing" in done.stdout


def test_verify_names_a_damaged_manifest(run):
    write_bytes(RunFolder(run).ledger / "rounds" / "round-00.json", b"{")
    done = dynamics("verify", run)
    assert done.returncode == 1
    assert "round-00.json" in done.stdout


def test_verify_names_a_committed_round_that_lacks_labels(tmp_path):
    store_run(tmp_path / "part", pool_labels().slice(5))
    done = dynamics("verify", tmp_path / "part")
    assert done.returncode == 1
    assert "round-01.json lacks a label for 5 of the pairs in" in " ".join(done.stdout.split())


def test_an_option_of_environments_is_refused_without_one(tmp_path):
    done = dynamics("film", tmp_path / "film", "--lerobot")
    assert_one_line_error(done, "--lerobot is for an environment: name it with --env")


def test_film_writes_clips_that_ingest_turns_into_pairs(tmp_path):
    filmed = dynamics("film", tmp_path / "film", "--pairs", 12)
    assert filmed.returncode == 0, filmed.stderr
    ingested = dynamics(
        "ingest", tmp_path / "film" / "clips", "--out", tmp_path / "p.parts", "--spacing", "3"
    )
    assert ingested.returncode == 0, ingested.stderr
    assert "pairs from" in ingested.stdout
    assert (tmp_path / "p.parts" / "manifest.json").is_file()


@pytest.mark.slow
def test_bootstrap_is_the_same_command_as_the_script():
    script = subprocess.run(
        [sys.executable, "ray_jobs/bootstrap.py", "--print-config", "seed=5"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert dynamics("bootstrap", "--print-config", "seed=5").stdout == script.stdout


def test_report_opens_the_page_that_it_wrote(local_run: LocalRun, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(local_run.folder, folder)
    (folder / "report.html").unlink()
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/opened\n')
    browser.chmod(0o755)
    done = dynamics("report", folder, "--open", BROWSER=f"{browser} %s")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "opened").read_text().strip() == (folder / "report.html").as_uri()
    assert (folder / "report.html").is_file()


def test_report_in_a_pipe_opens_nothing(local_run: LocalRun, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(local_run.folder, folder)
    done = dynamics("report", folder, BROWSER=f"touch {tmp_path}/opened %s")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "opened").exists()
