from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamics.core.errors import UserError
from dynamics.data.labelled.listing import LabelledPair, Segment
from dynamics.data.labelled.split import drawn, grouped, split


def pair(number: int, *sources: str) -> LabelledPair:
    frames = Segment(Path("/v.mp4"), (number, number + 1.0))
    return LabelledPair(name="v.mp4", frames=frames, action="go", sources=sources, place=number)


def test_pairs_are_linked_over_other_pairs():
    pairs = [pair(0, "a", "b"), pair(1, "c", "d"), pair(2, "b", "c"), pair(3, "e")]
    assert [[one.place for one in group] for group in grouped(pairs)] == [[0, 1, 2], [3]]


@settings(max_examples=100, deadline=None)
@given(
    links=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=2, max_size=40),
    fraction=st.floats(0.05, 0.6),
    seed=st.integers(0, 5),
)
def test_no_source_is_ever_on_both_sides_and_nothing_is_lost(links, fraction, seed):
    pairs = [pair(number, f"s{a}", f"s{b}") for number, (a, b) in enumerate(links)]
    try:
        train, heldout = split(pairs, fraction, seed)
    except UserError:
        assert len(grouped(pairs)) == 1
        return
    assert sorted(one.place for one in train + heldout) == list(range(len(pairs)))
    ours, theirs = ({s for one in part for s in one.sources} for part in (train, heldout))
    assert not ours & theirs
    assert train
    assert heldout


def test_the_fraction_is_kept_when_groups_are_small():
    pairs = [pair(number, f"s{number // 2}") for number in range(200)]
    _, heldout = split(pairs, 0.1, 0)
    assert len(heldout) == 20


def test_another_seed_holds_out_others():
    pairs = [pair(number, f"s{number}") for number in range(50)]
    assert {one.place for one in split(pairs, 0.2, 0)[1]} != {
        one.place for one in split(pairs, 0.2, 1)[1]
    }


def test_the_split_does_not_depend_on_the_order_of_the_manifest():
    pairs = [pair(number, f"s{number}") for number in range(50)]
    assert split(pairs, 0.2, 0) == split(pairs[::-1], 0.2, 0)


def test_one_source_cannot_be_split():
    with pytest.raises(UserError, match=r"one source \(s\).*heldout_path"):
        split([pair(0, "s"), pair(1, "s")], 0.5, 0)


def test_the_drawn_order_is_no_order_of_the_manifest():
    pairs = [pair(number, "s") for number in range(50)]
    order = [one.place for one in drawn(pairs, 0)]
    assert sorted(order) == list(range(50)) != order
