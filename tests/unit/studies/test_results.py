"""Statistics and rendering of the study, on numbers made up here."""

import json
import re

import numpy as np
import pytest

from dynamics.studies.markdown import shown, to_markdown
from dynamics.studies.results import Check, Results, Row, Table, difference, mean, share_of_gap


def outcomes(rates: list[float], seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.random(1000) < rate for rate in rates]


def results() -> Results:
    cells = {"IDM": mean(outcomes([0.7, 0.8]), "idm"), "FDP": mean(outcomes([0.5, 0.5]), "fdp")}
    table = Table(
        title="(a)", note="A note.", columns=("IDM", "FDP"), rows=(Row(name="x", cells=cells),)
    )
    check = Check(claim="(a)", asked="20 points", measured="19.0", holds=False)
    return Results(
        date="2026-01-02",
        seeds=(1, 2),
        config_digest="0" * 64,
        settings={"plan": {"seeds": [1, 2]}},
        tables={"ease": table},
        checks=(check,),
    )


def test_a_mean_is_that_of_the_seeds_and_shows_each() -> None:
    number = mean([np.ones(10), np.zeros(30)], "x")
    assert (number.value, number.seeds) == (0.5, (1.0, 0.0))


def test_intervals_cover_scenes_within_their_seed_only() -> None:
    """Seeds that differ but hold equal scenes leave nothing to resample."""
    number = mean([np.ones(10), np.zeros(10)], "x")
    assert (number.low, number.high) == (0.5, 0.5)


def test_a_difference_is_paired() -> None:
    arm = outcomes([0.5, 0.6])
    better = [np.maximum(one, np.arange(1000) % 10 == 0) for one in arm]
    gain = difference(better, arm, "gain")
    unpaired = mean(better, "better")
    assert gain.low > 0
    assert gain.high - gain.low < unpaired.high - unpaired.low


def test_the_share_of_a_gap_is_one_at_its_ceiling() -> None:
    low, high = outcomes([0.2, 0.3], 1), outcomes([0.8, 0.9], 2)
    assert share_of_gap(high, low, high, "gap").value == pytest.approx(1.0)
    assert share_of_gap(low, low, high, "gap").value == pytest.approx(0.0)


def test_results_come_back_from_json() -> None:
    payload = json.loads(json.dumps(results().to_json()))
    assert Results.from_json(payload) == results()


def test_every_number_of_the_markdown_is_in_the_json() -> None:
    text = to_markdown(results(), ["study/ease.png"])
    number = results().tables["ease"].rows[0].cells["IDM"]
    assert shown(number) in text
    assert "![ease](study/ease.png)" in text
    values = [number.value, number.low, number.high, *number.seeds]
    other = results().tables["ease"].rows[0].cells["FDP"]
    values += [other.value, other.low, other.high, *other.seeds]
    table = text.split("A note.")[1]
    assert {float(one) for one in re.findall(r"\d+\.\d", table)} == {
        round(100 * value, 1) for value in values
    }


def test_a_bar_that_was_missed_says_no() -> None:
    assert "| **no** |" in to_markdown(results(), [])
