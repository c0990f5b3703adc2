"""Best of N from scripted candidates."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from dynamics.core.config import LoopConfig
from dynamics.evaluation.candidates import CANDIDATE_SCHEMA
from dynamics.storage.run_folder import write_json
from dynamics.storage.tables import write_table
from dynamics.studies.best_of_n_tables import COLUMNS, Candidates, checks, tables
from dynamics.studies.candidates import CANDIDATES_FILE, WEIGHT_FILE
from dynamics.studies.experiments import CALIBRATE, StudyPlan, candidates
from dynamics.studies.study import Study, study_of

PLAN = StudyPlan(seeds=(1,), best_of=(1, 2, 8, 16), temperatures=(1.0,), num_verified=40)


def drawn(correct: np.ndarray, temperature: float) -> pa.Table:
    rows = {
        "pair_id": [f"{row:04d}" for row in range(len(correct))],
        "temperature": [temperature] * len(correct),
        "correct": correct.tolist(),
        "copied": (~correct).tolist(),
        "idm_logprob": (correct - 1.0).tolist(),
        "idm_copy_logprob": [-1.0] * len(correct),
        "fdp_logprob": (-3.0 * correct).tolist(),
    }
    return pa.table(rows, schema=CANDIDATE_SCHEMA)


@pytest.fixture
def study(small: LoopConfig, tmp_path: Path) -> Study:
    """The IDM likes correct candidates, the FDP likes wrong ones three times as much."""
    rng = np.random.default_rng(0)
    greedy = np.arange(40)[:, None] % 2 == 0
    table = pa.concat_tables([drawn(greedy, 0.0), drawn(rng.random((40, 16)) < 0.4, 1.0)])
    study = study_of(small, PLAN, tmp_path, 1)
    for round_id in (0, small.rounds):
        folder = study.folder(candidates(round_id))
        write_table(folder / CANDIDATES_FILE, table, CANDIDATE_SCHEMA)
        write_json(folder / "done.json", {})
    write_json(study.folder(CALIBRATE) / WEIGHT_FILE, {"weight": 8.0})
    write_json(study.folder(CALIBRATE) / "done.json", {})
    return study


def test_a_perfect_verifier_reaches_the_oracle_and_a_perverse_one_nothing(study: Study) -> None:
    verified = Candidates(study, 0, 1.0)
    oracle = verified.oracle(8)
    assert np.array_equal(verified.chosen("idm", 8, verified.correct_BN), oracle)
    assert np.array_equal(verified.chosen("calibrated", 8, verified.correct_BN), oracle)
    only_correct = verified.correct_BN.reshape(40, 2, 8).all(-1).mean(-1)
    assert np.array_equal(verified.chosen("noisy_channel", 8, verified.correct_BN), only_correct)


def test_best_of_one_is_one_sample_whoever_chooses(study: Study) -> None:
    (table, _) = tables([study]).values()
    row = table.rows[0]
    assert {row.cells[column].value for column in COLUMNS.values()} == {row.cells["random"].value}


def test_more_candidates_never_lower_the_oracle(study: Study) -> None:
    (table, _) = tables([study]).values()
    values = [row.cells["oracle"].value for row in table.rows]
    assert values == sorted(values)


def test_regret_is_what_the_default_verifier_misses_of_the_oracle(study: Study) -> None:
    (table, _) = tables([study]).values()
    for row in table.rows:
        missed = row.cells["oracle"].value - row.cells[COLUMNS["noisy_channel"]].value
        assert row.cells["regret"].value == pytest.approx(missed)


def test_the_bars_are_held_against_the_default_verifier(study: Study) -> None:
    # It chooses hardly any correct frame at 8, and no fewer at 16.
    assert [check.holds for check in checks([study])] == [False, False, True]
