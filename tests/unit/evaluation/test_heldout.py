from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest

from dynamics.core.config import EvaluateConfig, LoopConfig
from dynamics.evaluation.heldout import evaluate_heldout, results_schema
from dynamics.evaluation.metrics import best_of_prefix, summarise
from dynamics.inference.verifiers import VERIFIERS
from dynamics.storage.tables import codes_matrix
from tests.fakes import WORLD, CellTokenizer, ScriptedFDP, ScriptedIDM, filmed

PAIRS, TRUTH = filmed(60)
CFG = LoopConfig(world=WORLD, evaluate=EvaluateConfig(best_of=(1, 2, 8), batch_size=16))
SUCCESSES = (
    "idm_exact",
    "idm_correct",
    "fdp_greedy_success",
    "fdp_sample_success",
    "fdp_copy",
    "tokenizer_ceiling",
)


def _evaluate(pairs=PAIRS, truth=TRUTH, *, idm=None, fdp=None, with_best_of=30, cfg=CFG):
    idm = idm or ScriptedIDM()
    fdp = fdp or ScriptedFDP(skill=0.4)
    return evaluate_heldout(pairs, truth, idm, fdp, cfg, 1, with_best_of)


def test_rows_follow_the_heldout_pairs():
    items = _evaluate()
    assert items.schema == results_schema((1, 2, 8))
    assert items["pair_id"].to_pylist() == PAIRS["pair_id"].to_pylist()


def test_perfect_models_succeed_everywhere():
    items = _evaluate(fdp=ScriptedFDP(skill=1.0))
    for name in ("idm_correct", "fdp_greedy_success", "fdp_sample_success", "tokenizer_ceiling"):
        assert all(items[name].to_pylist()), name
    assert not any(items["fdp_copy"].to_pylist())


def test_a_copying_fdp_is_counted_as_copying():
    items = _evaluate(fdp=ScriptedFDP(skill=0.0, sure=lambda action: False))
    assert all(items["fdp_copy"].to_pylist())
    assert not any(items["fdp_greedy_success"].to_pylist())
    assert not any(items["oracle_best_of_8"].to_pylist()[:30])


def test_a_sentence_without_meaning_is_wrong_not_missing():
    items = _evaluate(idm=ScriptedIDM(says=lambda sentence: "the the"))
    assert items["idm_correct"].to_pylist() == [False] * 60
    assert items["idm_exact"].to_pylist() == [False] * 60


def test_best_of_1_is_the_plain_sample():
    items = _evaluate(with_best_of=60)
    assert items["best_of_1"].to_pylist() == items["fdp_sample_success"].to_pylist()
    assert items["oracle_best_of_1"].to_pylist() == items["fdp_sample_success"].to_pylist()


def test_no_verifier_beats_the_oracle_and_the_oracle_never_falls_with_n():
    items = _evaluate(with_best_of=60)
    oracle = {n: np.array(items[f"oracle_best_of_{n}"].to_pylist()) for n in (1, 2, 8)}
    assert (oracle[1] <= oracle[2]).all()
    assert (oracle[2] <= oracle[8]).all()
    for n in (1, 2, 8):
        for verifier in VERIFIERS:
            curve = np.array(items[f"{best_of_prefix(verifier)}_{n}"].to_pylist())
            assert (curve <= oracle[n]).all()


def test_a_verifier_that_is_registered_is_measured(monkeypatch):
    monkeypatch.setitem(VERIFIERS, "pessimist", lambda evidence: -evidence.action)
    items = _evaluate(with_best_of=60)
    assert items.schema.field("pessimist_best_of_8").nullable
    assert sum(items["pessimist_best_of_8"].to_pylist()) < sum(items["best_of_8"].to_pylist())
    assert "eval/pessimist_best_of_8" in summarise(items)


def test_best_of_covers_the_asked_rows_only():
    items = _evaluate(with_best_of=30)
    assert None not in items["best_of_8"].to_pylist()[:30]
    assert items["best_of_8"].to_pylist()[30:] == [None] * 30
    assert items["best_codes"].to_pylist()[30:] == [None] * 30


def test_best_codes_are_the_frame_that_best_of_judged():
    items = _evaluate(with_best_of=60)
    right = (codes_matrix(items, "best_codes") == codes_matrix(PAIRS, "target_codes")).all(axis=1)
    assert right.tolist() == items["best_of_8"].to_pylist()


def test_cutting_the_table_changes_nothing():
    whole = _evaluate(with_best_of=30)
    flags = [row < 30 for row in range(60)]
    cuts = (0, 7, 31, 60)
    parts = [
        _evaluate(PAIRS.slice(start, stop - start), with_best_of=flags[start:stop])
        for start, stop in pairwise(cuts)
    ]
    assert pa.concat_tables(parts).equals(whole)


def test_batch_size_changes_nothing():
    one_batch = CFG.model_copy(update={"evaluate": EvaluateConfig(best_of=(1, 2, 8))})
    assert _evaluate(cfg=one_batch).equals(_evaluate())


def test_pairs_without_truth_are_null_not_wrong():
    items = _evaluate(truth=TRUTH.slice(10))
    for name in SUCCESSES:
        missing = [] if name == "idm_exact" else [None] * 10
        assert items[name].to_pylist()[: len(missing)] == missing
        assert None not in items[name].to_pylist()[10:]
    assert items["oracle_best_of_8"].to_pylist()[:10] == [None] * 10


def test_no_truth_at_all_still_gives_every_row():
    items = _evaluate(truth=None)
    assert items.num_rows == 60
    assert items["fdp_greedy_success"].null_count == 60
    assert items["idm_exact"].null_count == 0


def test_the_oracle_never_looks_at_frames_whose_state_nobody_knows():
    class Photographs(CellTokenizer):
        def decode(self, codes_BL: np.ndarray) -> np.ndarray:
            raise AssertionError("these frames have no cells")

    fdp = ScriptedFDP()
    fdp.images = Photographs()
    items = _evaluate(truth=None, fdp=fdp)
    assert items["fdp_greedy_success"].null_count == items.num_rows
    assert items["best_codes"].null_count < items.num_rows


def test_no_best_of_and_no_rows_are_fine():
    plain = CFG.model_copy(update={"evaluate": EvaluateConfig(best_of=())})
    assert "best_of_1" not in _evaluate(cfg=plain).column_names
    assert _evaluate(PAIRS.slice(0, 0)).num_rows == 0


@pytest.mark.parametrize("column", ["greedy_codes", "best_codes"])
def test_codes_keep_their_length(column: str):
    items = _evaluate(with_best_of=60)
    assert codes_matrix(items, column).shape == (60, 9)
