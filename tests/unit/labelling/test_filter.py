import math
import sys
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamics.core.config import FilterConfig
from dynamics.core.errors import UserError
from dynamics.core.records import DECISION_SCHEMA, LABEL_SCHEMA
from dynamics.labelling.filter import (
    BalancedRule,
    StratifiedTopKRule,
    ThresholdRule,
    TopFractionRule,
    decide,
    iter_decisions,
)
from dynamics.storage.ledger import reason_counts

RULES = (
    ThresholdRule(threshold=-1.0),
    TopFractionRule(fraction=0.5),
    BalancedRule(fraction=0.5),
    StratifiedTopKRule(k=3),
)


def make_labels(
    scores: Sequence[float],
    *,
    classes: Sequence[str] | None = None,
    actions: Sequence[str] | None = None,
) -> pa.Table:
    """Label "00" scores scores[0], "01" scores[1], ..."""
    rows = [
        {
            "label_id": f"{number:02d}",
            "pair_id": f"pair-{number:02d}",
            "clip_class": classes[number] if classes else "",
            "round_id": 1,
            "idm_digest": "d",
            "prompt_version": "v1",
            "decode": "{}",
            "action": actions[number] if actions else "move it",
            "token_logprobs": [score],
            "scores": {
                "mean_logprob": score,
                "min_logprob": score,
                "sum_logprob": score,
            },
        }
        for number, score in enumerate(scores)
    ]
    return pa.Table.from_pylist(rows, LABEL_SCHEMA)


def kept(labels: pa.Table, cfg: FilterConfig) -> list[str]:
    decisions = decide(labels, cfg)
    return decisions.filter(decisions["accepted"])["label_id"].to_pylist()


def test_threshold_keeps_the_score_itself() -> None:
    # 0.1 has no exact binary form: as float32 it lies above the float64 threshold.
    labels = make_labels([-0.1, -0.1001, -0.0999])
    cfg = FilterConfig(rule=ThresholdRule(threshold=-0.1))
    assert kept(labels, cfg) == ["00", "02"]
    assert decide(labels, cfg)["reason"].to_pylist() == ["accepted", "below_threshold", "accepted"]


def test_top_fraction_keeps_the_best_of_all_labels() -> None:
    labels = make_labels([-4, -1, -3, -2])
    assert kept(labels, FilterConfig(rule=TopFractionRule(fraction=0.5))) == ["01", "03"]
    assert kept(labels, FilterConfig(rule=TopFractionRule(fraction=1))) == ["00", "01", "02", "03"]


def test_top_fraction_counts_without_binary_rounding() -> None:
    labels = make_labels(np.linspace(-2, -1, 100).tolist())
    for fraction in (0.07, 0.14, 0.28, 0.29, 0.55, 0.56, 0.57, 0.58):
        num_kept = len(kept(labels, FilterConfig(rule=TopFractionRule(fraction=fraction))))
        assert num_kept == round(100 * fraction)


def test_rejected_labels_do_not_shift_the_fraction() -> None:
    labels = make_labels([math.nan, -1, -2, -3], actions=["go", "go", "go", ""])
    cfg = FilterConfig(rule=TopFractionRule(fraction=0.75))
    assert decide(labels, cfg)["reason"].to_pylist() == [
        "non_finite_score",
        "accepted",
        "accepted",
        "empty_action",
    ]


def test_ties_go_to_the_smaller_label_id() -> None:
    labels = make_labels([-1.0] * 6, classes=list("ababab"))
    assert kept(labels, FilterConfig(rule=TopFractionRule(fraction=0.5))) == ["00", "01", "02"]
    assert kept(labels, FilterConfig(rule=StratifiedTopKRule(k=3))) == ["00", "01", "02"]


def test_balanced_takes_the_best_share_of_every_type_of_action() -> None:
    said = ["go on", "go up", "go on", "go on", "turn left", "turn right", "fly"]
    labels = make_labels([-1, -2, -3, -4, -50, -60, -99], actions=said)
    assert kept(labels, FilterConfig(rule=BalancedRule(fraction=0.5))) == ["00", "01", "04"]
    assert decide(labels, FilterConfig(rule=BalancedRule(fraction=0.5)))["reason"].to_pylist() == [
        *["accepted"] * 2,
        *["outside_fraction_of_type"] * 2,
        "accepted",
        *["outside_fraction_of_type"] * 2,
    ]
    assert len(kept(labels, FilterConfig(rule=BalancedRule(fraction=1.0)))) == 7


def test_stratified_takes_one_of_every_class_per_pass() -> None:
    labels = make_labels([-1, -2, -3, -4, -50, -60, -99], classes=list("aaaabbc"))
    # First pass 00, 04, 06; second pass 01, 05; third pass 02.
    wanted = ["00", "04", "06", "01", "05", "02", "03"]
    for k in range(1, 8):
        # A last, incomplete pass takes its best labels first: so does the order above.
        assert kept(labels, FilterConfig(rule=StratifiedTopKRule(k=k))) == sorted(wanted[:k])
    assert decide(labels, FilterConfig(rule=StratifiedTopKRule(k=1)))["reason"].to_pylist() == [
        "accepted",
        *["outside_top_k"] * 6,
    ]


def test_stratified_on_one_class_is_top_k() -> None:
    labels = make_labels([-5, -1, -3, -2, -4])
    assert kept(labels, FilterConfig(rule=StratifiedTopKRule(k=2))) == ["01", "03"]
    assert len(kept(labels, FilterConfig(rule=StratifiedTopKRule(k=99)))) == 5


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.kind)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_scores_and_empty_actions_never_pass(rule: object, bad: float) -> None:
    labels = make_labels([bad, -0.1, -0.2], actions=["go", "  \n", "go"])
    decisions = decide(labels, FilterConfig(rule=rule))
    assert decisions["reason"].to_pylist()[:2] == ["non_finite_score", "empty_action"]
    assert not any(decisions["accepted"].to_pylist()[:2])


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.kind)
def test_no_labels_give_no_decisions(rule: object) -> None:
    decisions = decide(make_labels([]), FilterConfig(rule=rule))
    assert decisions.num_rows == 0
    assert decisions.schema.equals(DECISION_SCHEMA)
    assert reason_counts(decisions) == {}


def test_a_score_that_was_not_measured_is_named() -> None:
    cfg = FilterConfig(score="agreement", rule=TopFractionRule())
    with pytest.raises(UserError, match=r"filter\.score=agreement was not measured"):
        decide(make_labels([-1, -2]), cfg)
    nothing_said = make_labels([-1, -2], actions=["", ""])
    assert reason_counts(decide(nothing_said, cfg)) == {"empty_action": 2}


def test_one_missing_measurement_is_a_counted_reject() -> None:
    rows = make_labels([-1, -2]).to_pylist()
    rows[1]["scores"] = {"agreement": 0.75}
    labels = pa.Table.from_pylist(rows, LABEL_SCHEMA)
    cfg = FilterConfig(score="agreement", rule=ThresholdRule(threshold=0.5))
    assert decide(labels, cfg)["reason"].to_pylist() == ["non_finite_score", "accepted"]


def test_repeated_labels_are_refused() -> None:
    labels = make_labels([-1, -2])
    with pytest.raises(ValueError, match="repeat a label_id"):
        decide(pa.concat_tables([labels, labels]), FilterConfig())


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            st.one_of(st.floats(-5, 0, width=32), st.just(math.nan)),
            st.sampled_from("abc"),
            st.sampled_from(["go", "move it", ""]),
        ),
        max_size=20,
    ),
    rule=st.sampled_from(RULES),
    seed=st.integers(0, 99),
)
def test_every_label_gets_one_decision_whatever_the_order(
    rows: list[tuple[float, str, str]], rule: object, seed: int
) -> None:
    scores, classes, actions = ([row[column] for row in rows] for column in range(3))
    labels = make_labels(scores, classes=classes, actions=actions)
    cfg = FilterConfig(rule=rule)
    decisions = decide(labels, cfg)
    assert decisions["label_id"].to_pylist() == labels["label_id"].to_pylist()
    assert decisions["pair_id"].to_pylist() == labels["pair_id"].to_pylist()
    reasons = decisions["reason"].to_pylist()
    assert set(reasons) <= {"accepted", "empty_action", "non_finite_score", cfg.rule.reason}
    assert [reason == "accepted" for reason in reasons] == decisions["accepted"].to_pylist()
    assert sum(reason_counts(decisions).values()) == len(rows)
    order = np.random.default_rng(seed).permutation(len(rows))
    shuffled = decide(labels.take(pa.array(order)), cfg)
    for column in ("label_id", "accepted", "reason"):
        assert shuffled[column].equals(decisions[column])


@settings(max_examples=60, deadline=None)
@given(scores=st.lists(st.floats(-5, 0, width=32), min_size=1, max_size=20))
def test_within_a_class_no_reject_beats_a_kept_label(scores: list[float]) -> None:
    classes = ["ab"[number % 2] for number in range(len(scores))]
    for rule in RULES:
        accepted = decide(make_labels(scores, classes=classes), FilterConfig(rule=rule))["accepted"]
        for name in "ab":
            mine = [
                (score, good)
                for score, good, group in zip(scores, accepted.to_pylist(), classes, strict=True)
                if group == name
            ]
            worst_kept = min((score for score, good in mine if good), default=math.inf)
            assert all(score <= worst_kept for score, good in mine if not good)


def test_top_k_of_a_pool_of_several_folders_counts_for_each():
    classes = ["ucf/a", "ucf/a", "ucf/b", "k700/a", "k700/", "k700/a"]
    labels = make_labels([-1, -2, -3, -4, -5, -6], classes=classes)
    rule = StratifiedTopKRule(k=2)
    decisions = decide(labels, FilterConfig(score="mean_logprob", rule=rule)).to_pylist()
    kept = [row["label_id"] for row in decisions if row["accepted"]]
    assert kept == ["00", "02", "03", "04"]
    assert {row["reason"] for row in decisions} == {"accepted", "outside_top_k"}


def one_by_one(labels: pa.Table, cfg: FilterConfig) -> list[bool]:
    """The three rules again, a label at a time."""
    rows = labels.sort_by("label_id").to_pylist()
    scores = [np.float32(dict(row["scores"]).get(cfg.score, math.nan)) for row in rows]
    eligible = [
        bool(row["action"].strip()) and math.isfinite(score)
        for row, score in zip(rows, scores, strict=True)
    ]
    best_first = sorted(
        (place for place in range(len(rows)) if eligible[place]), key=lambda place: -scores[place]
    )
    rule = cfg.rule
    if isinstance(rule, ThresholdRule):
        chosen = {place for place in best_first if scores[place] >= np.float32(rule.threshold)}
    elif isinstance(rule, TopFractionRule):
        chosen = set(best_first[: int(rule.fraction * len(rows) + 1e-9)])
    elif isinstance(rule, BalancedRule):
        types = [(row["action"].split() or [""])[0] for row in rows]
        chosen = set()
        for name, size in Counter(types).items():
            of_type = [place for place in best_first if types[place] == name]
            chosen.update(of_type[: int(rule.fraction * size + 1e-9)])
    else:
        assert isinstance(rule, StratifiedTopKRule)
        classes = [row["clip_class"] for row in rows]
        folders = [name.partition("/")[0] if "/" in name else "" for name in classes]
        chosen = set()
        for folder in set(folders):
            used: Counter[str] = Counter()
            passes = []
            for place in (place for place in best_first if folders[place] == folder):
                passes.append((used[classes[place]], place))
                used[classes[place]] += 1
            in_turn = sorted(passes, key=lambda entry: entry[0])
            chosen.update(place for _, place in in_turn[: rule.k])
    return [place in chosen for place in range(len(rows))]


@pytest.mark.parametrize("seed", range(8))
def test_decisions_are_those_of_the_rules_read_label_by_label(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = int(rng.integers(1, 300))
    scores = rng.choice([-2.5, -1.0, -0.5, math.nan, -math.inf, 0.1], size).tolist()
    names = ["", "walk", "run", "a/walk", "a/run", "b/", "b/c/d"]
    labels = make_labels(
        scores,
        classes=[names[place] for place in rng.integers(0, len(names), size)],
        actions=rng.choice(
            ["go", "turn left", "turn right", "", " \t", "\u2003", "\x1f"], size
        ).tolist(),
    )
    labels = labels.set_column(
        0, LABEL_SCHEMA.field(0), pa.array([f"{number:06d}" for number in rng.permutation(size)])
    )
    ordered = labels.sort_by("label_id")
    for rule in (*RULES, TopFractionRule(fraction=0.07), StratifiedTopKRule(k=int(size / 5) + 1)):
        cfg = FilterConfig(rule=rule)
        found = decide(labels, cfg)
        assert found["accepted"].to_pylist() == one_by_one(labels, cfg)

        def in_pieces(columns: Sequence[str]) -> Iterator[pa.Table]:
            for start in range(0, size, 37):
                yield ordered.select(columns).slice(start, 37)

        pieces = pa.concat_tables(iter_decisions(in_pieces, cfg))
        assert repr(pieces.to_pylist()) == repr(found.to_pylist())


def test_what_counts_as_a_sentence_is_what_python_does_not_strip() -> None:
    blanks = [chr(code) for code in range(sys.maxunicode) if chr(code).isspace()]
    others = [chr(code) for code in range(1, 0x3000) if not chr(code).isspace()]
    labels = make_labels([-1.0] * len(blanks + others), actions=blanks + others)
    labels = labels.set_column(
        0, LABEL_SCHEMA.field(0), pa.array([f"{number:06d}" for number in range(labels.num_rows)])
    )
    reasons = decide(labels, FilterConfig(rule=ThresholdRule(threshold=-9)))["reason"].to_pylist()
    assert reasons == ["empty_action"] * len(blanks) + ["accepted"] * len(others)
