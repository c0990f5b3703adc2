"""The doors of CONTRIBUTING: what its recipes register works, is measured, reported and offered."""

import importlib
import re
import shutil
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dynamics.core.config import LoopConfig
from dynamics.core.config_file import with_overrides
from dynamics.core.errors import UserError
from dynamics.core.records import PAIR_SCHEMA, TRANSITION_SCHEMA, DataRefs
from dynamics.evaluation.heldout import results_schema
from dynamics.exports import export_run
from dynamics.models import load_image_tokenizer
from dynamics.plan.findings import evidence_of, findings
from dynamics.report.page import write_page
from dynamics.serving.schemas import PredictRequest
from dynamics.storage.ledger import Ledger
from dynamics.storage.run_folder import RunFolder
from dynamics.storage.tables import dataset_ref, read_table, score_names
from tests.doors.conftest import FILMED
from tests.doors.recipes import recipes
from tests.runs import results, run_local

NAMES = {
    "A model family, and an image tokenizer": "mirrored",
    "A pool source": "prefixed",
    "A labelled set": "tsv",
    "A confidence score": "brevity",
    "A filter rule": "above_median",
    "A verifier": "half_idm",
    "A metric": "eval/idm_words",
    "A finding": "still_pool",
    "A guard": "silent_labels",
    "A domain": "kitchen",
    "An export": "sentences",
    "An objective": "focal",
    "A decoder": "row_by_row",
}
"""Door to the name that its recipe registers."""


def help_of(command: str) -> str:
    """What a fresh start of the command says; names are put into its help when it is imported."""
    for name in [name for name in sys.modules if name.startswith("dynamics.cli")]:
        del sys.modules[name]
    app = importlib.import_module("dynamics.cli.main").app
    return CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).output


def test_every_door_of_contributing_is_tried() -> None:
    assert set(recipes()) == {*NAMES, "An executor"}
    for title, blocks in recipes().items():
        if title == "An executor":  # handed in, not registered
            continue
        assert re.search(rf'^[A-Z]+\["{NAMES[title]}"\] = ', blocks[-1][1], re.MULTILINE), title


def test_nothing_new_is_known_before(older_run: RunFolder, small: LoopConfig) -> None:
    with pytest.raises(UserError, match="'brevity' is unknown"):
        with_overrides(small, ["filter.score=brevity"])


def test_a_new_executor_runs_every_round(
    filmed_run: RunFolder, small: LoopConfig, tmp_path: Path
) -> None:
    run_local(with_overrides(small, FILMED), tmp_path / "run")
    assert results(tmp_path / "run") == results(filmed_run.root)


def test_a_new_score_ranks_the_labels_and_is_stored(filmed_run: RunFolder) -> None:
    ledger = Ledger(filmed_run.ledger)
    assert "brevity" in score_names(ledger.labels(1))
    scores = set(ledger.decisions(1)["score"].to_pylist())
    assert scores <= {-float(tokens) for tokens in range(20)}


def test_a_new_rule_decides(filmed_run: RunFolder) -> None:
    reasons = Ledger(filmed_run.ledger).manifest(1).reasons
    assert "accepted" in reasons
    assert set(reasons) <= {"accepted", "below_median", "empty_action"}


def test_a_new_verifier_is_measured_reported_and_offered(filmed_run: RunFolder) -> None:
    metrics = filmed_run.reports(1)[1].metrics
    assert "eval/half_idm_best_of_2" in metrics
    assert "half_idm" in write_page(filmed_run).read_text()
    offered = PredictRequest.model_json_schema()
    assert "half_idm" in str(offered)


def test_a_new_metric_is_reported_with_its_interval(filmed_run: RunFolder) -> None:
    words = [report.metrics["eval/idm_words"] for report in filmed_run.reports(1)]
    assert all(one.low <= one.value <= one.high for one in words)


def test_a_new_finding_is_among_those_of_a_run(real_run: RunFolder) -> None:
    cfg, tables = real_run.config(), ("labelled", "pool", "heldout")
    refs = {name: dataset_ref(real_run.table(name)) for name in tables}
    images = load_image_tokenizer(cfg.model.family, cfg.base_path(), cfg.model.device)
    found = findings(evidence_of(cfg, real_run, DataRefs(truth=None, **refs), images))
    assert "of the pool's pairs hardly anything moves" in found["still_pool"].found


def test_a_new_guard_is_judged_and_can_be_accepted(
    filmed_run: RunFolder, small: LoopConfig
) -> None:
    judged = {guard.name: guard.passed for guard in filmed_run.reports(1)[1].guards}
    assert judged["silent_labels"]
    assert "silent_labels" in write_page(filmed_run).read_text()
    assert with_overrides(small, ["guards.accept=[silent_labels]"])


def test_a_new_export_is_offered_and_written(filmed_run: RunFolder, tmp_path: Path) -> None:
    assert "sentences" in help_of("export")
    said = export_run(filmed_run, "sentences", tmp_path / "out", None, lambda *_: None)
    accepted = filmed_run.reports(1)[1].num_accepted
    assert said == f"{accepted} sentences of round 1"
    assert len((tmp_path / "out" / "sentences.txt").read_text().splitlines()) == accepted


def test_a_new_source_and_a_new_set_feed_a_run(real_run: RunFolder) -> None:
    pool = read_table(real_run.pool, PAIR_SCHEMA)
    assert set(pool["clip_class"].to_pylist()) == {"push", "swap"}
    labelled = read_table(real_run.labelled, TRANSITION_SCHEMA)
    assert set(labelled["action"].to_pylist()) == {"push ring", "swap ring"}
    assert "prefixed" in help_of("ingest")


def test_a_new_family_and_tokenizer_run_every_stage(real_run: RunFolder) -> None:
    assert [report.round_id for report in real_run.reports(1)] == [0, 1]


def test_a_new_domain_is_measured(real_run: RunFolder) -> None:
    measured = read_table(real_run.results(1), results_schema((1, 2)))
    assert set(measured["action_kind"].to_pylist()) <= {"push", "swap"}


def test_an_older_run_goes_on_beside_new_names(
    older_run: RunFolder, new_names: None, small: LoopConfig, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(older_run.root, folder)
    before = results(folder)
    (folder / "rounds" / "round-01" / "report.json").unlink()
    run_local(small, folder)
    again = results(folder)
    assert {name: again[name] for name in before if "report.json" not in name} == {
        name: content for name, content in before.items() if "report.json" not in name
    }
