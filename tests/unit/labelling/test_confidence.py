import math
from pathlib import Path

import numpy as np
import pytest

from dynamics.core.config import FilterConfig, ScoreName
from dynamics.core.domain import normalised_text
from dynamics.core.records import LABEL_SCHEMA
from dynamics.labelling.confidence import SCORES, Evidence, Score, measured_scores
from dynamics.labelling.filter import TopFractionRule, decide
from dynamics.storage.tables import read_table, score_column, write_table
from tests.unit.storage.rows import make_labels


def test_logprob_scores_are_sum_mean_and_least_token() -> None:
    evidence = Evidence(action="move it", token_logprobs=(-0.5, -2.0, -0.5))
    assert SCORES["sum_logprob"](evidence) == -3.0
    assert SCORES["mean_logprob"](evidence) == -1.0
    assert SCORES["min_logprob"](evidence) == -2.0


def test_the_mean_does_not_punish_length_but_the_sum_does() -> None:
    short = Evidence(action="go", token_logprobs=(-0.25,) * 2)
    long = Evidence(action="go over there now", token_logprobs=(-0.25,) * 8)
    assert SCORES["mean_logprob"](short) == SCORES["mean_logprob"](long)
    assert SCORES["sum_logprob"](short) > SCORES["sum_logprob"](long)


@pytest.mark.parametrize("name", SCORES)
def test_an_empty_caption_has_no_score(name: ScoreName) -> None:
    evidence = Evidence(action="", token_logprobs=(), samples=("",), fdp_loglik=-1.0)
    assert math.isnan(SCORES[name](evidence))


@pytest.mark.parametrize("name", ["mean_logprob", "sum_logprob", "min_logprob", "agreement"])
def test_a_broken_token_is_not_hidden_by_good_ones(name: ScoreName) -> None:
    evidence = Evidence(action="a", token_logprobs=(-0.1, math.nan), samples=("a", "a"))
    assert math.isnan(SCORES[name](evidence))


def test_agreement_counts_meanings_not_spellings() -> None:
    evidence = Evidence(
        action="Move the red block.",
        token_logprobs=(-1.0,),
        samples=("move the  red block", "MOVE THE RED BLOCK.", "move the blue block", "stop"),
    )
    assert math.floor(SCORES["agreement"](evidence) * 4) == 2


def test_agreement_uses_the_given_meaning() -> None:
    evidence = Evidence(
        action="shift red",
        token_logprobs=(-1.0,),
        samples=("move red", "move blue"),
        canonical=lambda sentence: sentence.split()[-1],
    )
    assert math.floor(SCORES["agreement"](evidence) * 2) == 1


def test_sentences_without_meaning_agree_with_nothing() -> None:
    evidence = Evidence(
        action="mumble",
        token_logprobs=(-0.1,),
        samples=("mumble", "mumble"),
        canonical=lambda _: "",
    )
    assert SCORES["agreement"](evidence) < 0.5


def test_likelihood_breaks_ties_of_agreement_and_never_overrules_a_vote() -> None:
    def score(votes: int, logprob: float) -> float:
        samples = ["a"] * votes + ["b"] * (4 - votes)
        return SCORES["agreement"](Evidence(action="a", token_logprobs=(logprob,), samples=samples))

    assert score(2, -0.1) > score(2, -3.0)
    assert score(3, -50.0) > score(2, 0.0)
    assert score(4, -1000.0) >= 1.0


def test_missing_evidence_is_an_error_in_the_score_and_left_out_of_the_row() -> None:
    bare = Evidence(action="a", token_logprobs=(-0.5,))
    for name in ("agreement", "fdp_likelihood", "noisy_channel"):
        with pytest.raises(ValueError, match="needs"):
            SCORES[name](bare)
    full = Evidence(action="a", token_logprobs=(-0.5,), samples=("a",), fdp_loglik=-7.0)
    of_bare, of_full, again = map(dict, measured_scores([bare, full, bare]).to_pylist())
    assert of_bare == again == {"mean_logprob": -0.5, "min_logprob": -0.5, "sum_logprob": -0.5}
    assert list(of_full) == sorted(SCORES)
    assert of_full["fdp_likelihood"] == -7.0
    assert measured_scores([]).to_pylist() == []


def test_stored_scores_are_those_of_numpy() -> None:
    rng = np.random.default_rng(0)
    for _ in range(2_000):
        logprobs = np.float32(-rng.exponential(rng.choice([0.01, 1, 9]), rng.integers(1, 14)))
        values = logprobs.tolist()
        (found,) = measured_scores([Evidence(action="a", token_logprobs=values)]).to_pylist()
        measured = {"mean": np.mean(values), "min": np.min(values), "sum": np.sum(values)}
        wanted = {f"{name}_logprob": float(np.float32(v)) for name, v in measured.items()}
        assert dict(found) == wanted


def test_a_new_score_is_one_line_and_no_schema_change(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setitem(SCORES, "brevity", Score(lambda evidence: -len(evidence.action)))
    rows = make_labels(3).to_pylist()
    evidence = [
        Evidence(action=row["action"], token_logprobs=row["token_logprobs"]) for row in rows
    ]
    labels = (
        make_labels(3).drop_columns("scores").append_column("scores", measured_scores(evidence))
    )
    stored = read_table(write_table(tmp_path / "a.parquet", labels, LABEL_SCHEMA), LABEL_SCHEMA)
    assert score_column(stored, "brevity").tolist() == [-len(row["action"]) for row in rows]
    rule = TopFractionRule(fraction=0.5)
    assert decide(stored, FilterConfig(score="brevity", rule=rule))["accepted"].to_pylist()


def test_noisy_channel_adds_what_both_models_say() -> None:
    evidence = Evidence(action="a b", token_logprobs=(-0.5, -1.0), fdp_loglik=-7.0)
    assert SCORES["noisy_channel"](evidence) == pytest.approx(-8.5)


def test_normalised_text_ignores_case_spaces_and_full_stop() -> None:
    assert normalised_text("  Put  the Cup\n down. ") == "put the cup down"
