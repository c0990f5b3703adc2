from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dynamics.core.config import LoopConfig
from dynamics.core.records import PAIR_SCHEMA, DatasetRef
from dynamics.inference.idm import Caption
from dynamics.inference.sampling import SamplingParams
from dynamics.labelling.filter import decide
from dynamics.labelling.labeller import Labeller, unlabelled
from dynamics.storage.ledger import reason_counts
from dynamics.storage.shards import Shard, cut, read_shard
from dynamics.storage.tables import score_column, score_names
from tests.unit.storage.rows import make_pairs

LENGTH, NUM_CODES = 4, 16


class FakeImages:
    frame_px = 8
    bars = None
    num_tokens = LENGTH
    num_codes = NUM_CODES


class FakeIdm:
    """Says which code comes first; less sure of larger codes."""

    digest = "idm"
    prompt_version = "v1"

    def __init__(self) -> None:
        self.batches: list[int] = []

    def label(
        self, source_BL: np.ndarray, target_BL: np.ndarray, *, max_action_tokens: int
    ) -> list[Caption]:
        self.batches.append(len(source_BL))
        return [Caption(f"code {row[0]}", (-0.1 * row[0], -0.5)) for row in source_BL]

    def sample(
        self,
        source_BL: np.ndarray,
        target_BL: np.ndarray,
        sampling: SamplingParams,
        *,
        seeds: Sequence[int],
    ) -> list[list[Caption]]:
        said = ["code 1" if sample % 2 else "code 2" for sample in range(sampling.num_samples)]
        drawn = [[Caption(text, (-1.0,)) for text in said] for _ in source_BL]
        if not sampling.greedy_first:
            return drawn
        greedy = self.label(source_BL, target_BL, max_action_tokens=12)
        return [[first, *others[1:]] for first, others in zip(greedy, drawn, strict=True)]

    def fits_prompt(self, action: str) -> bool:
        return 1 <= len(action.split()) <= 2


class MumblingIdm(FakeIdm):
    """Says nothing about the first pair of a batch, and too much about the second."""

    def label(
        self, source_BL: np.ndarray, target_BL: np.ndarray, *, max_action_tokens: int
    ) -> list[Caption]:
        captions = super().label(source_BL, target_BL, max_action_tokens=max_action_tokens)
        return [Caption("", (-0.1,)), Caption("on and on", (-0.1,) * 3), *captions[2:]]


class FakeFdp:
    def frame_logprobs(
        self, source_BL: np.ndarray, actions: list[str], target_BL: np.ndarray
    ) -> np.ndarray:
        return -target_BL.sum(1).astype(float)


def pairs(num: int) -> pa.Table:
    codes = [[row % NUM_CODES] * LENGTH for row in range(num)]
    return pa.table(
        {
            "pair_id": [f"pair-{row:03d}" for row in range(num)],
            "clip_class": ["kitchen"] * num,
            "source_codes": pa.array(codes, pa.list_(pa.uint16())),
            "target_codes": pa.array(codes, pa.list_(pa.uint16())),
        }
    )


def labeller(cfg: LoopConfig, idm: FakeIdm | None = None) -> Labeller:
    return Labeller(idm or FakeIdm(), FakeFdp(), cfg, FakeImages())  # type: ignore[arg-type]


def test_shards_cover_every_row_once() -> None:
    assert cut(5, 2) == [Shard(start=0, stop=2), Shard(start=2, stop=4), Shard(start=4, stop=5)]
    assert cut(0, 2) == []


@pytest.mark.parametrize("rows_per_group", [1, 3, 4, 100])
def test_a_shard_is_the_same_rows_whatever_the_row_groups(
    tmp_path: Path, rows_per_group: int
) -> None:
    table = make_pairs(11).select(PAIR_SCHEMA.names)
    pq.write_table(table, tmp_path / "pool.parquet", row_group_size=rows_per_group)
    ref = DatasetRef(path=tmp_path / "pool.parquet", num_rows=11, digest="")
    for shard in cut(11, 4):
        found = read_shard(ref, shard)["pair_id"].to_pylist()
        assert found == table["pair_id"].to_pylist()[shard.start : shard.stop]


def test_only_shards_with_an_unlabelled_pair_are_left() -> None:
    def left(*covered: tuple[int, int]) -> list[tuple[int, int]]:
        attempted = [Shard(start=start, stop=stop) for start, stop in covered]
        return [(shard.start, shard.stop) for shard in unlabelled(7, attempted, 2)]

    assert left() == [(0, 2), (2, 4), (4, 6), (6, 7)]
    assert left((0, 3)) == [(2, 4), (4, 6), (6, 7)]
    assert left((5, 7), (0, 2), (1, 5)) == []


def test_batch_size_is_the_configured_one() -> None:
    idm = FakeIdm()
    labels = labeller(LoopConfig(label={"batch_size": 4}), idm).label(pairs(10), 1)
    assert idm.batches == [4, 4, 2]
    assert labels["action"].to_pylist()[:2] == ["code 0", "code 1"]
    assert score_column(labels, "sum_logprob")[1] == pytest.approx(-0.6)
    assert score_names(labels) == {"mean_logprob", "min_logprob", "sum_logprob"}


def test_only_the_configured_score_is_paid_for() -> None:
    agreement = labeller(LoopConfig(filter={"score": "agreement"})).label(pairs(3), 1)
    assert np.isfinite(score_column(agreement, "agreement")).all()
    assert "fdp_likelihood" not in score_names(agreement)
    likelihood = labeller(LoopConfig(filter={"score": "fdp_likelihood"})).label(pairs(3), 1)
    assert score_column(likelihood, "fdp_likelihood").tolist() == [0.0, -4.0, -8.0]


def test_pairs_with_codes_of_another_tokenizer_are_counted_rejects() -> None:
    table = pairs(3)
    broken = pa.array([[1] * LENGTH, [1, 2], [NUM_CODES] * LENGTH], pa.list_(pa.uint16()))
    table = table.set_column(2, "source_codes", broken)
    cfg = LoopConfig(filter={"rule": {"kind": "top_fraction", "fraction": 1.0}})
    decisions = decide(labeller(cfg).label(table, 1), cfg.filter)
    assert reason_counts(decisions) == {"accepted": 1, "empty_action": 2}


@pytest.mark.parametrize("score", ["sum_logprob", "fdp_likelihood", "agreement"])
def test_empty_and_overlong_sentences_are_counted_rejects(score: str) -> None:
    cfg = LoopConfig(filter={"score": score, "rule": {"kind": "top_fraction", "fraction": 1.0}})
    labels = labeller(cfg, MumblingIdm()).label(pairs(4), 1)
    assert labels["action"].to_pylist() == ["", "", "code 2", "code 3"]
    assert reason_counts(decide(labels, cfg.filter)) == {"accepted": 2, "empty_action": 2}


def test_the_sentence_that_both_models_find_likeliest_becomes_the_label() -> None:
    judged: list[str] = []

    class Doubtful(FakeFdp):
        def frame_logprobs(
            self, source_BL: np.ndarray, actions: list[str], target_BL: np.ndarray
        ) -> np.ndarray:
            judged.extend(actions)
            return np.array([0.0 if action == "code 1" else -9.0 for action in actions])

    cfg = LoopConfig(filter={"score": "fdp_likelihood"}, label={"candidates": 3})
    judge = Labeller(FakeIdm(), Doubtful(), cfg, FakeImages())  # type: ignore[arg-type]
    labels = judge.label(pairs(3), 1)
    assert labels["action"].to_pylist() == ["code 1"] * 3  # sampled, not what greedy decoding said
    assert score_column(labels, "fdp_likelihood").tolist() == [0.0] * 3
    # "code 2" cannot win where the IDM alone finds it less likely than both find "code 1".
    assert judged == ["code 0", "code 1", "code 2", "code 1", "code 1"]
    greedy = labeller(LoopConfig(filter={"score": "fdp_likelihood"})).label(pairs(3), 1)
    assert not set(greedy["label_id"].to_pylist()) & set(labels["label_id"].to_pylist())


def test_candidates_without_a_judge_are_a_config_error() -> None:
    with pytest.raises(ValueError, match="fdp_likelihood"):
        LoopConfig(label={"candidates": 2})


def test_labels_are_keyed_by_pair_and_model_not_by_round() -> None:
    first, second = labeller(LoopConfig()), labeller(LoopConfig())
    assert first.label(pairs(3), 1)["label_id"] == second.label(pairs(3), 2)["label_id"]
