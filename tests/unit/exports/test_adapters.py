"""Adapters for sharing: peft loads them, and their cards tell what the round measured."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel

from dynamics.core.errors import UserError
from dynamics.core.progress import silent
from dynamics.exports import export_run
from dynamics.exports.cards import model_card
from dynamics.exports.rounds import finished_round
from dynamics.models import load_model
from dynamics.models.chameleon import load_network
from dynamics.storage.files import adapter_digest
from dynamics.storage.run_folder import RunFolder, read_json, write_json
from tests.runs import LocalRun

TASKS = ["idm", "fdp"]


@pytest.fixture(scope="module")
def run(local_run: LocalRun) -> RunFolder:
    return RunFolder(local_run.folder)


@pytest.fixture(scope="module")
def exported(run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("adapters") / "out"
    export_run(run, "adapters", out, None, silent)
    return out


@pytest.mark.parametrize("task", TASKS)
def test_a_shared_adapter_computes_what_the_runs_own_does(
    run: RunFolder, exported: Path, task: str
) -> None:
    cfg, report = run.config(), run.report(1)
    assert report is not None
    own = load_model(cfg.model.family, cfg.base_path())
    own.load_adapter(task, run.root / report.models[task])  # type: ignore[arg-type]
    shared = PeftModel.from_pretrained(load_network(cfg.base_path()), str(exported / task)).eval()
    ids = torch.randint(0, 50, (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = own.logits(own.hidden(ids)).log_softmax(-1)
        base = shared.get_base_model()
        found = base.lm_head(base.model(input_ids=ids).last_hidden_state).log_softmax(-1)
        with shared.disable_adapter():
            without = base.lm_head(base.model(input_ids=ids).last_hidden_state).log_softmax(-1)
    assert torch.equal(found, expected)
    assert not torch.allclose(found, without)


@pytest.mark.parametrize("task", TASKS)
def test_a_shared_adapter_keeps_the_digest_that_labels_name(
    run: RunFolder, exported: Path, task: str
) -> None:
    report = run.report(1)
    assert report is not None
    digest = adapter_digest(run.config().base_path(), exported / task)
    assert digest == report.models[f"{task}_digest"]
    assert read_json(exported / "lineage.json")[f"{task}_digest"] == digest
    named = read_json(exported / task / "adapter_config.json")["base_model_name_or_path"]
    assert named == run.config().base_path().name


@pytest.mark.parametrize("task", TASKS)
def test_a_model_card_has_parents_metrics_and_failures(
    run: RunFolder, exported: Path, task: str
) -> None:
    report = run.report(1)
    assert report is not None
    _, header, text = (exported / task / "README.md").read_text().split("---\n", 2)
    loaded = yaml.safe_load(header)
    assert loaded["base_model"] == run.config().base_path().name
    assert loaded["library_name"] == "peft"
    assert loaded["license"] == "other"  # the base is not the one that ships with the package
    assert report.models[f"{task}_digest"] in text
    assert run.config().digest() in text
    success = report.metrics["eval/fdp_success"]
    assert f"| `eval/fdp_success` | {success.percent()} | {success.num_items} |" in text
    for guard in report.guards:
        assert guard.name.replace("_", r"\_") in text
    kinds = [name for name in report.metrics if name.startswith("eval/fdp_success_")]
    assert kinds
    for name in kinds:
        kind = name.removeprefix("eval/fdp_success_").replace("_", r"\_")
        assert f"| {kind} |" in text
    assert "## Licence" in text


def test_what_other_people_wrote_cannot_change_a_card(run: RunFolder, tmp_path: Path) -> None:
    shutil.copytree(run.root, tmp_path / "run")
    copied = RunFolder(tmp_path / "run")
    path = copied.round(1) / "report.json"
    bad = "most for '<script>alert(1)</script> | [x](http://x) `y`\n# Title'"
    guard = {"name": "type_skew", "value": 1.0, "limit": 0.5, "passed": False, "message": bad}
    write_json(path, {**read_json(path), "guards": [guard]})
    text = model_card(finished_round(copied, 1, first=0), "idm")
    assert "<script>" not in text
    assert "\n# Title" not in text
    assert r"\[x\](http" in text
    assert "Guards blocked this round" in text


def test_a_changed_adapter_is_not_shared(run: RunFolder, tmp_path: Path) -> None:
    shutil.copytree(run.root, tmp_path / "run")
    copied = RunFolder(tmp_path / "run")
    config = copied.round(1) / "idm" / "adapter_config.json"
    config.write_text(config.read_text() + " ")
    with pytest.raises(UserError, match="damaged or was changed"):
        export_run(copied, "adapters", tmp_path / "out", None, silent)
    assert not (tmp_path / "out").exists()


def test_an_adapter_outside_the_run_is_not_shared(run: RunFolder, tmp_path: Path) -> None:
    shutil.copytree(run.root, tmp_path / "run")
    copied = RunFolder(tmp_path / "run")
    path = copied.round(1) / "report.json"
    report = read_json(path)
    write_json(path, {**report, "models": {**report["models"], "idm": "../elsewhere"}})
    with pytest.raises(UserError, match="lies outside"):
        export_run(copied, "adapters", tmp_path / "out", None, silent)


def test_a_whole_checkpoint_is_no_adapter(run: RunFolder, tmp_path: Path) -> None:
    shutil.copytree(run.root, tmp_path / "run")
    copied = RunFolder(tmp_path / "run")
    (copied.round(1) / "idm" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="whole checkpoint"):
        export_run(copied, "adapters", tmp_path / "out", None, silent)
