from pathlib import Path

import pyarrow as pa
import pytest

from dynamics.core.records import LABEL_SCHEMA, PAIR_SCHEMA, TRANSITION_SCHEMA, DatasetRef
from dynamics.labelling.training_set import build_training_set
from dynamics.storage import buckets
from dynamics.storage.pairs import is_whole, write_pairs
from dynamics.storage.tables import read_table


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


def built(
    folder: Path, seed: pa.Table, pool: pa.Table, labels: pa.Table, unit: int = 100
) -> DatasetRef:
    """The training set of tables that were stored ``unit`` rows at a time."""
    codes = folder / "codes"
    pieces = (labels.slice(start, unit) for start in range(0, labels.num_rows, unit))
    return build_training_set(
        write_pairs(folder / "labelled.parts", seed, TRANSITION_SCHEMA, codes),
        write_pairs(folder / "pool.parts", pool, PAIR_SCHEMA, codes),
        pieces,
        folder / "training_set.parts",
        codes,
    )


def test_seed_comes_first_then_accepted_pairs_sorted(tmp_path: Path) -> None:
    seed = make_seed("zy")
    ref = built(tmp_path, seed, make_pool("dbca"), make_labels("dab"))
    training_set = read_table(ref, TRANSITION_SCHEMA)
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


def test_order_of_pool_and_labels_does_not_change_a_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = built(tmp_path / "a", make_seed("z"), make_pool("abc"), make_labels("ac"))
    two = built(tmp_path / "b", make_seed("z"), make_pool("cab"), make_labels("ca"), unit=1)
    # Buckets on disk, one for each first letter, of which b has no label.
    monkeypatch.setattr(buckets, "_BUCKET_ROWS", 1)
    three = built(tmp_path / "c", make_seed("z"), make_pool("bca"), make_labels("ca"))
    assert one.digest == two.digest == three.digest


def test_nothing_accepted_leaves_the_seed(tmp_path: Path) -> None:
    seed = make_seed("zy")
    ref = built(tmp_path, seed, make_pool("ab"), make_labels(""))
    assert read_table(ref, TRANSITION_SCHEMA).equals(seed)


def test_an_accepted_label_without_its_pair_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="have no pair in the pool"):
        built(tmp_path, make_seed("z"), make_pool("a"), make_labels("ab"))
    assert not is_whole(tmp_path / "training_set.parts")


def test_a_pair_is_grown_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two accepted labels"):
        built(tmp_path, make_seed("z"), make_pool("a"), make_labels("aa"))
