"""Blocks pushed before a fixed camera, and a base that knows neither: named before a run starts."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from dynamics.cli.main import app
from dynamics.core.config import REPOSITORY_ROOT, KeyframeConfig
from dynamics.core.config_file import load
from dynamics.core.console import ProgressView
from dynamics.core.errors import UserError
from dynamics.pipeline.stages import Stages
from dynamics.storage.run_folder import RunFolder, read_json
from ray_jobs.bootstrap import _check_data, main
from tests.blocks import film, write_labels


@pytest.fixture(scope="module")
def robot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with clips, labels and the config that `dynamics new` wrote for them."""
    folder = tmp_path_factory.mktemp("robot")
    film(folder / "clips", 12)
    write_labels(folder / "labels.parquet", range(10, 104))  # two of the clips are in the pool
    arguments = ["--videos", folder / "clips", "--labels", folder / "labels.parquet"]
    config = folder / "my-robot.yaml"
    result = run("new", "my-robot", *arguments, "--out", config)
    assert result.exit_code == 0, result.output
    assert f"dynamics pretrain {config}" in result.output
    assert (
        "runs/my-robot-base' # dynamics pretrain makes it: the shipped base" in config.read_text()
    )
    # 30 labels teach, 64 are held out.
    text = config.read_text().replace("heldout_fraction: 0.3", "heldout_fraction: 0.68")
    text = text.replace("runs/my-robot-base", "dynamics/assets/tiny-4x4")
    config.write_text(text.replace("run_dir: runs/my-robot", f"run_dir: {folder}/run"))
    return folder


def run(*arguments: object):
    # `exit_code` 2 of the command is an exception here.
    return CliRunner(env={"COLUMNS": "80"}).invoke(app, [str(one) for one in arguments])


def test_new_writes_a_config_that_a_run_reads_with_a_reason_for_every_number(robot: Path) -> None:
    cfg = load(robot / "my-robot.yaml")
    assert (cfg.name, cfg.labelled.dataset) == ("my-robot", "parquet")
    assert cfg.pool.keyframes.spacing_frames == 2
    assert cfg.pool.keyframes.min_change < KeyframeConfig().min_change
    assert "spacing_frames: 2 # gives 4." in (robot / "my-robot.yaml").read_text()
    again = run(
        "new", "my-robot", "--videos", robot, "--labels", robot, "--out", robot / "my-robot.yaml"
    )
    assert isinstance(again.exception, UserError)
    assert "exists" in str(again.exception)


def test_check_names_the_blind_tokenizer_the_unknown_words_and_the_few_labels(robot: Path) -> None:
    result = run("check", robot / "my-robot.yaml")
    assert result.exit_code == 1, result.output
    said = " ".join(result.output.split())
    refused = [line.split()[1:3] for line in result.output.splitlines() if "REFUSE" in line]
    assert refused == [["blind", "tokenizer:"], ["unknown", "words:"], ["learning", "curve:"]]
    assert "does not know (6: " in said
    assert "(nearest: " in said
    assert "30 labels: a linear stand-in for the IDM" in said
    assert "about 200 labels would do" in said
    assert "a run refuses to start" in said
    assert "clip/in_heldout" in said
    assert "leak" not in said
    assert "train longer" not in said
    table = [
        one for one in result.output.splitlines() if one.startswith(("REF", "warn", "fine", " "))
    ]
    assert len(table) > 10
    assert max(map(len, table)) <= 80


@pytest.mark.slow
def test_check_fit_trains_on_a_quarter_and_on_all_labels(small_tabletop: Path) -> None:
    result = run("check", small_tabletop, "--fit")
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert "rounds: from 64 to 256 labels, trained as in round 0: FDP frames right" in said
    assert "IDM sentences right" in said


@pytest.fixture
def small_tabletop(tmp_path: Path) -> Path:
    """The embedded default with 256 labels, for a few steps."""
    config = tmp_path / "small.yaml"
    lines = [
        "name: small",
        f"run_dir: {tmp_path}/run",
        "pool: {num_pairs: 300}",
        "labelled: {num_pairs: 256, num_heldout: 60}",
        f"model: {{base: {REPOSITORY_ROOT}/dynamics/assets/tiny-4x4, device: cpu}}",
        "train: {first_steps: 20, round_steps: 20}",
    ]
    config.write_text("\n".join(lines) + "\n")
    return config


@pytest.mark.slow
def test_a_run_refuses_to_start_on_it_and_anyway_is_recorded(
    robot: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--config", str(robot / "my-robot.yaml"), "--no-ray", "serve.enabled=false"]
    assert main(command) == 5
    lines = capsys.readouterr().err.splitlines()
    refused = [line.split(": ")[1] for line in lines if line.startswith("refused: ")]
    assert refused == ["blind_tokenizer", "unknown_words", "learning_curve"]
    assert any(line.endswith("or start with --anyway") for line in lines)
    folder = RunFolder(robot / "run")
    assert not folder.round(0).exists()
    assert "anyway" not in read_json(folder.record)
    with ProgressView() as view:
        stages = Stages(folder.config(), folder.root)
        _check_data(folder.config(), folder, stages, view, anyway=True)
    assert read_json(folder.record)["anyway"] == sorted(refused)
