import pyarrow as pa
import pytest

from dynamics.core.records import LABEL_SCHEMA, PAIR_SCHEMA, TRANSITION_SCHEMA
from dynamics.labelling.training_set import build_training_set
from dynamics.storage.tables import to_parquet


def pair_row(name: str) -> dict[str, object]:
    return {
        "pair_id": name,
        "clip_sha256": "c",
        "clip_path": f"{name}.mp4",
        "clip_class": "",
        "frame0": 0,
        "frame1": 1,
        "t0_s": 0.0,
        "t1_s": 0.5,
        "motion": 0.1,
        "source_codes": [1, 2],
        "target_codes": [3, 4],
        "recognition": [0.0, 1.0],
    }


def make_pool(names: str) -> pa.Table:
    return pa.Table.from_pylist([pair_row(name) for name in names], PAIR_SCHEMA)


def make_seed(names: str) -> pa.Table:
    rows = [{**pair_row(name), "action": f"true {name}", "origin": "labelled"} for name in names]
    return pa.Table.from_pylist(rows, TRANSITION_SCHEMA)


def make_labels(names: str) -> pa.Table:
    rows = [
        {
            "label_id": f"label-{name}",
            "pair_id": name,
            "clip_class": "",
            "round_id": 1,
            "idm_digest": "d",
            "prompt_version": "v1",
            "decode": "{}",
            "action": f"guess {name}",
            "token_logprobs": [-1.0],
            "scores": {"sum_logprob": -1.0},
        }
        for name in names
    ]
    return pa.Table.from_pylist(rows, LABEL_SCHEMA)


def test_seed_comes_first_then_accepted_pairs_sorted() -> None:
    seed = make_seed("zy")
    training_set = build_training_set(seed, make_pool("dbca"), make_labels("dab"))
    assert training_set.slice(0, 2).equals(seed)
    assert training_set["pair_id"].to_pylist() == ["z", "y", "a", "b", "d"]
    assert training_set["action"].to_pylist()[2:] == ["guess a", "guess b", "guess d"]
    assert training_set["origin"].to_pylist() == [
        "labelled",
        "labelled",
        "label-a",
        "label-b",
        "label-d",
    ]
    assert training_set["clip_path"].to_pylist()[2:] == ["a.mp4", "b.mp4", "d.mp4"]
    assert training_set.schema.equals(TRANSITION_SCHEMA)


def test_order_of_pool_and_labels_does_not_change_a_byte() -> None:
    one = build_training_set(make_seed("z"), make_pool("abc"), make_labels("ac"))
    two = build_training_set(make_seed("z"), make_pool("cab"), make_labels("ca"))
    assert to_parquet(one, TRANSITION_SCHEMA) == to_parquet(two, TRANSITION_SCHEMA)


def test_nothing_accepted_leaves_the_seed() -> None:
    seed = make_seed("zy")
    assert build_training_set(seed, make_pool("ab"), make_labels("")).equals(seed)
    nothing = build_training_set(seed, make_pool(""), make_labels(""))
    assert nothing.equals(seed)


def test_an_accepted_label_without_its_pair_is_an_error() -> None:
    with pytest.raises(ValueError, match="have no pair in the pool"):
        build_training_set(make_seed("z"), make_pool("a"), make_labels("ab"))


def test_a_pair_is_grown_once() -> None:
    with pytest.raises(ValueError, match="two accepted labels"):
        build_training_set(make_seed("z"), make_pool("a"), make_labels("aa"))
