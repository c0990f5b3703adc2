"""A base of one's own clips, made by the command."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dynamics.cli.main import app
from dynamics.core.config_file import load
from dynamics.core.errors import UserError
from dynamics.models import load_model
from dynamics.storage.files import damaged_files
from tests.blocks import film, write_labels

SMALL = [
    word
    for key in (
        "num_frames=200", "codes_a_side=[3, 4]", "trial_steps=3", "tokenizer_steps=200", "width=16",
        "layers=1", "heads=2", "feed_forward=32", "steps=6",
    )
    for word in ("--set", f"pretrain.{key}")
]  # fmt: skip


def run(*arguments: object):
    return CliRunner(env={"COLUMNS": "160"}).invoke(app, [str(one) for one in arguments])


@pytest.mark.slow
def test_clips_and_labels_become_a_base_that_check_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    film(tmp_path / "clips", 12)
    write_labels(tmp_path / "labels.parquet", range(10, 30))
    config = tmp_path / "blocks.yaml"
    places = ["--videos", tmp_path / "clips", "--labels", tmp_path / "labels.parquet"]
    assert run("new", "blocks", *places, "--out", config).exit_code == 0
    text = config.read_text().replace("runs/blocks-base", f"{tmp_path}/base")
    config.write_text(text.replace("run_dir: runs/blocks", f"run_dir: {tmp_path}/run"))

    missing = run("check", config).exception
    assert isinstance(missing, UserError)
    assert "dynamics pretrain CONFIG makes one" in str(missing)

    with monkeypatch.context() as patch:
        patch.setattr("dynamics.pretraining.own_clips._BLIND", 1.01)
        blind = run("pretrain", config, *SMALL).exception
    assert isinstance(blind, UserError)
    assert "held-out pairs differ, so no base is made" in str(blind)

    made = run("pretrain", config, *SMALL)
    assert made.exit_code == 0, made.output
    assert f"made {tmp_path}/base" in made.output
    assert f"next: dynamics check {config}" in " ".join(made.output.split())
    base = tmp_path / "base"
    assert not damaged_files(base)
    recipe = json.loads((base / "recipe.json").read_text())
    assert recipe["image_tokenizer"]["heldout"].keys() == {"seen", "kept", "likeness", "error"}
    assert recipe["heldout_losses"]
    assert (base / "reconstruction.png").is_file()
    assert not (tmp_path / ".base.making").exists()

    tokens = load_model("chameleon", base).tokens
    assert not tokens.unknown_words("push the crimson block backwards then stop")
    assert list(tokens.unknown_words("push the crimsom block")) == ["crimsom"]
    said = run("check", config).output
    assert "the base knows every word of the sentences" in said
    assert "exists; remove it to make it anew" in str(run("pretrain", config).exception)
    assert load(config).model.base == base


@pytest.mark.slow
def test_what_was_begun_goes_on_and_another_recipe_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    film(tmp_path / "clips", 8)
    write_labels(tmp_path / "labels.parquet", range(20))
    config = tmp_path / "blocks.yaml"
    places = ["--videos", tmp_path / "clips", "--labels", tmp_path / "labels.parquet"]
    assert run("new", "blocks", *places, "--out", config).exit_code == 0
    command = ["pretrain", config, *SMALL, "--set"]

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("dynamics.pretraining.make.train_base", killed)
        run(*command, f"model.base={tmp_path}/base")
    work = tmp_path / ".base.making"
    kept = (work / "image_tokenizer" / "image_tokenizer.safetensors").stat().st_mtime_ns
    assert (work / "frames" / "frames.npy").is_file()
    refused = run(*command, f"model.base={tmp_path}/base", "--set", "seed=1").exception
    assert "was begun with another recipe (" in str(refused)
    assert kept == (work / "image_tokenizer" / "image_tokenizer.safetensors").stat().st_mtime_ns
    unbroken = run(*command, f"model.base={tmp_path}/unbroken")
    made = run(*command, f"model.base={tmp_path}/base")
    assert (unbroken.exit_code, made.exit_code) == (0, 0), made.output
    assert "image tokenizer," not in made.output
    for name in ("model.safetensors", "image_tokenizer.safetensors"):
        ours, theirs = (tmp_path / folder / name for folder in ("base", "unbroken"))
        assert ours.read_bytes() == theirs.read_bytes()
