"""This version over run folders of older ones (tests/data/make_run.py): nothing is made again."""

import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dynamics.cli.main import app
from dynamics.core.config import REPOSITORY_ROOT
from dynamics.core.config_file import with_overrides
from dynamics.core.records import PAIR_SCHEMA, TRANSITION_SCHEMA, TRUTH_SCHEMA
from dynamics.evaluation.heldout import results_schema
from dynamics.exports import EXPORTS
from dynamics.report.page import write_page
from dynamics.storage.ledger import Ledger
from dynamics.storage.run_folder import RunFolder
from dynamics.storage.tables import read_table
from tests.runs import results, run_local

STORED = sorted((REPOSITORY_ROOT / "tests" / "data").glob("run-*"))


@pytest.fixture(params=STORED, ids=lambda stored: stored.name)
def older(request: pytest.FixtureRequest, tmp_path: Path) -> RunFolder:
    """A copy of a stored run; what it says of its base leads to the repository's."""
    return RunFolder(shutil.copytree(request.param / "run", tmp_path / "run"))


def said(*arguments: str | Path) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done.output


def continued(older: RunFolder, *overrides: str) -> None:
    """Go on with a base of equal content at another place."""
    cfg = older.config()
    base = shutil.copytree(cfg.base_path(), older.root.parent / "elsewhere" / "base")
    run_local(with_overrides(cfg, [f"model.base={base}", *overrides]), older.root)


def written(older: RunFolder) -> dict[str, bytes]:
    """Every file of the rounds, with the adapters, beside what must stay anyway."""
    rounds = {path: path.read_bytes() for path in older.root.glob("rounds/**/*") if path.is_file()}
    return results(older.root) | {str(path): payload for path, payload in rounds.items()}


@pytest.mark.parametrize("stored", STORED, ids=lambda stored: stored.name)
def test_a_stored_run_is_small_and_names_no_path_of_the_machine_that_made_it(stored: Path) -> None:
    files = {path: path.read_bytes() for path in stored.rglob("*") if path.is_file()}
    assert sum(map(len, files.values())) < 150_000
    assert [path for path, payload in files.items() if re.search(rb'"/\w', payload)] == []


def test_an_older_run_opens(older: RunFolder) -> None:
    cfg, ledger = older.config(), Ledger(older.ledger)
    assert [report.round_id for report in older.reports(cfg.rounds)] == [0, 1]
    assert read_table(older.labelled, TRANSITION_SCHEMA).num_rows == cfg.labelled.num_pairs
    assert read_table(older.heldout, TRANSITION_SCHEMA).num_rows == cfg.labelled.num_heldout
    assert read_table(older.pool, PAIR_SCHEMA).num_rows == cfg.pool.num_pairs
    assert read_table(older.truth, TRUTH_SCHEMA).num_rows > 0
    assert ledger.labels(1).num_rows == ledger.decisions(1).num_rows == cfg.pool.num_pairs
    accepted = ledger.accepted(1).num_rows
    assert accepted > 0
    training_set = read_table(older.training_set(1), TRANSITION_SCHEMA)
    assert training_set.num_rows == cfg.labelled.num_pairs + accepted
    for round_id in (0, 1):
        items = read_table(older.results(round_id), results_schema(cfg.evaluate.best_of))
        assert items.num_rows == cfg.labelled.num_heldout
        assert older.training_log(round_id, "idm").last_step() > 0


def test_an_older_run_is_sound(older: RunFolder) -> None:
    assert "files and the ledger are sound" in said("verify", older.root)


def test_an_older_run_is_reported(older: RunFolder) -> None:
    page = write_page(older).read_text()
    assert page.count("<svg") > 2
    assert "data:image/png" in page
    lines = said("evaluate", older.root).splitlines()
    assert [line.split()[0] for line in lines if re.match(r" *[01] ", line)] == ["0", "1"]


@pytest.mark.parametrize("form", EXPORTS)
def test_an_older_run_is_exported(older: RunFolder, tmp_path: Path, form: str) -> None:
    said("export", older.root, "--as", form, "--out", tmp_path / "out")
    assert any((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    "hardware",
    [
        [],
        ["label.num_actors=1", "label.batch_size=3", "label.shard_rows=7", "evaluate.batch_size=4"],
    ],
    ids=["same", "other"],
)
def test_an_older_run_goes_on_to_another_round(older: RunFolder, hardware: list[str]) -> None:
    before, digest = written(older), older.digest
    continued(older, "rounds=2", *hardware)
    after = written(older)
    assert {name: after[name] for name in before} == before
    assert older.digest == digest
    report, cfg = older.report(2), older.config()
    assert report is not None
    assert report.num_labelled == cfg.pool.num_pairs
    assert report.metrics["eval/fdp_success"].num_items == cfg.labelled.num_heldout
    assert Ledger(older.ledger).verify(older.pool) == []


def test_an_older_report_that_is_lost_comes_back_from_the_tables(older: RunFolder) -> None:
    stored = older.report(1)
    assert stored is not None
    before = written(older)
    older.report_path(1).unlink()
    continued(older)
    again = older.report(1)
    assert again is not None
    # Not the bytes: the last bits of a mean depend on the vector units of the processor.
    assert again.metrics.keys() >= stored.metrics.keys()
    for name, estimate in stored.metrics.items():
        assert again.metrics[name].num_items == estimate.num_items
    assert again.reasons == stored.reasons
    assert again.models == stored.models
    assert again.train == stored.train
    assert {guard.name for guard in again.guards} >= {guard.name for guard in stored.guards}
    after = written(older)
    changed = {Path(name).name for name in before if after[name] != before[name]}
    assert changed <= {"report.json", "timings.json"}
