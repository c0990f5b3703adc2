"""Seed and held-out tables of a run, from real files."""

import json
from itertools import islice
from pathlib import Path

import pytest

from dynamics.core.config import IngestConfig, LabelledConfig, LoopConfig, PoolConfig
from dynamics.core.errors import UserError
from dynamics.core.records import TRANSITION_SCHEMA
from dynamics.data.labelled.build import build_labelled
from dynamics.data.labelled.read import PairReader
from dynamics.models import load_image_tokenizer
from dynamics.models.image_tokenizer import ImageTokenizer
from dynamics.pipeline.prepare import sentence_limit
from dynamics.storage.run_folder import RunFolder
from dynamics.storage.streams import run_stream
from dynamics.storage.tables import dataset_ref, read_table
from tests.made_data import picture, write_aurora, write_epic, write_parquet
from tests.unit.data.video.conftest import encoding_with


@pytest.fixture(scope="module")
def images() -> ImageTokenizer:
    cfg = LoopConfig()
    return load_image_tokenizer(cfg.model.family, cfg.base_path())


def config(path: Path, dataset: str = "aurora", seed: int = 0, **labelled: object) -> LoopConfig:
    settings = {"dataset": dataset, "path": path, "heldout_fraction": 0.25} | labelled
    return LoopConfig(
        seed=seed, pool=PoolConfig(path=path), labelled=LabelledConfig.model_validate(settings)
    )


def build(
    cfg: LoopConfig,
    out: Path,
    images: ImageTokenizer,
    fits=lambda action: True,
    run=run_stream,
):
    said: list[str] = []
    folder = RunFolder(out)
    encoding = encoding_with(lambda: images, folder.codes)
    refs, counted = build_labelled(
        cfg, folder, images, encoding, fits, run, lambda *call: said.append(call[2])
    )
    tables = {name: read_table(ref, TRANSITION_SCHEMA) for name, ref in refs.items()}
    return tables, counted, said


def test_every_usable_pair_is_in_one_of_the_two_sets(images, tmp_path):
    tables, counted, said = build(config(write_aurora(tmp_path / "set")), tmp_path / "out", images)
    seed, heldout = tables["labelled"], tables["heldout"]
    assert (seed.num_rows, heldout.num_rows) == (12, 4)
    assert not set(seed["clip_sha256"].to_pylist()) & set(heldout["clip_sha256"].to_pylist())
    assert counted["labelled"]["num_pairs"] == 12
    assert counted["labelled"]["rejects"] == {"missing_manifest": 2}
    assert (
        "16 of 16 rows can be used; left out: 2 missing_manifest" in counted["labelled"]["listed"]
    )
    assert counted["labelled"]["listed"] in said
    json.dumps(counted)


def test_equal_seeds_give_equal_bytes_and_others_hold_out_others(images, tmp_path):
    cfg = config(write_aurora(tmp_path / "set"))
    for name in ("a", "b"):
        build(cfg, tmp_path / name, images)
    other, _, _ = build(config(tmp_path / "set", seed=1), tmp_path / "c", images)
    for split in ("labelled", "heldout"):
        one, two = (RunFolder(tmp_path / name).table(split) for name in ("a", "b"))
        assert dataset_ref(one).digest == dataset_ref(two).digest
    first = read_table(RunFolder(tmp_path / "a").heldout, TRANSITION_SCHEMA)
    assert set(first["pair_id"].to_pylist()) != set(other["heldout"]["pair_id"].to_pylist())


def test_a_set_that_is_read_one_pair_at_a_time_is_the_same(images, tmp_path):
    for dataset, write in {
        "aurora": write_aurora,
        "epic": write_epic,
        "parquet": write_parquet,
    }.items():
        root = tmp_path / dataset
        root.mkdir()
        cfg = config(write(root), dataset)
        alone = cfg.model_copy(update={"ingest": IngestConfig(part_clips=1)})
        whole, cut = (build(one, root / name, images) for one, name in ((cfg, "w"), (alone, "c")))
        assert whole[0] == cut[0]
        assert whole[1] == cut[1]


def test_a_set_whose_reading_was_stopped_goes_on_where_it_was(images, tmp_path, monkeypatch):
    read: list[str] = []
    row = PairReader._row
    monkeypatch.setattr(
        PairReader,
        "_row",
        lambda self, pair, worker: read.append(pair.name) or row(self, pair, worker),
    )
    cfg = config(write_aurora(tmp_path / "set")).model_copy(
        update={"ingest": IngestConfig(part_clips=2)}
    )
    whole, _, _ = build(cfg, tmp_path / "whole", images)
    num_read = len(read)

    def stopped(stream, progress):
        yield from islice(run_stream(stream, progress), 2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(cfg, tmp_path / "out", images, run=stopped)
    read.clear()
    again, _, _ = build(cfg, tmp_path / "out", images)
    assert num_read - 16 <= len(read) <= num_read - 4
    assert again == whole
    assert not (tmp_path / "out" / "data" / "heldout.parts" / "units").exists()


def test_limits_take_a_sample_not_the_manifest_s_beginning(images, tmp_path):
    cfg = config(write_aurora(tmp_path / "set"), num_pairs=6, num_heldout=2)
    tables, _, _ = build(cfg, tmp_path / "out", images)
    assert (tables["labelled"].num_rows, tables["heldout"].num_rows) == (6, 2)
    assert set(tables["labelled"]["clip_class"].to_pylist()) == {"magicbrush", "ag"}


def test_what_cannot_be_decoded_is_replaced_counted_and_named(images, tmp_path):
    root = write_aurora(tmp_path / "set")
    broken = root / "data/magicbrush/images/0/0-output1.png"
    broken.write_bytes(b"no picture")
    same = root / "data/ag/images/V3.mp4_3_right.png"
    same.write_bytes((root / "data/ag/images/V3.mp4_3_left.png").read_bytes())
    tables, counted, _ = build(config(root, num_pairs=100), tmp_path / "out", images)
    assert tables["labelled"].num_rows + tables["heldout"].num_rows == 14
    rejects = [counted[name]["rejects"] for name in ("labelled", "heldout")]
    assert sum(each.get("unreadable", 0) for each in rejects) == 1
    assert sum(each.get("no_change", 0) for each in rejects) == 1
    named = [name for each in counted.values() for name in each["examples"].get("unreadable", [])]
    assert named == ["data/magicbrush/images/0/0-input.png"]


def test_a_picture_of_the_heldout_set_is_not_trained_on_under_another_name(images, tmp_path):
    root = write_aurora(tmp_path / "set")
    rows = json.loads((root / "data/ag/train.json").read_text())
    for row in rows:  # the same pictures, byte for byte, as if they were of another task
        for end in ("input", "output"):
            copy = root / "copies" / Path(row[end]).name
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes((root / row[end]).read_bytes())
            row[end] = f"copies/{copy.name}"
    (root / "heldout.json").write_text(json.dumps(rows[:3]))
    cfg = config(root, heldout_path=root / "heldout.json")
    tables, counted, _ = build(cfg, tmp_path / "out", images)
    assert (tables["labelled"].num_rows, tables["heldout"].num_rows) == (13, 3)
    assert counted["labelled"]["rejects"]["in_heldout"] == 3


def test_segments_of_one_video_stay_together(images, tmp_path):
    cfg = config(write_epic(tmp_path / "set"), "epic")
    tables, _, _ = build(cfg, tmp_path / "out", images)
    videos = {name: set(table["clip_path"].to_pylist()) for name, table in tables.items()}
    assert len(videos["heldout"]) == 1
    assert len(videos["labelled"]) == 3
    assert not videos["labelled"] & videos["heldout"]
    row = tables["labelled"].to_pylist()[0]
    assert 0 <= row["frame0"] < row["frame1"] < 20
    assert row["t1_s"] == pytest.approx(row["frame1"] / 10, abs=0.01)


def test_sentences_that_the_model_cannot_take_are_counted(images, tmp_path):
    cfg = LoopConfig()
    fits = sentence_limit(cfg, images)
    assert fits("move the red cube")
    assert not fits("move the red cube " * 20)
    tables, counted, _ = build(
        config(write_parquet(tmp_path), "parquet"),
        tmp_path / "out",
        images,
        fits=lambda action: "square" not in action,
    )
    said = tables["labelled"]["action"].to_pylist() + tables["heldout"]["action"].to_pylist()
    assert "take the square" not in said
    assert sum(each["rejects"].get("action_tokens", 0) for each in counted.values()) == 2


def test_the_same_pictures_may_have_several_sentences_but_not_one_twice(images, tmp_path):
    for name in "abcd":
        (tmp_path / f"{name}.png").write_bytes(picture(ord(name)))
    rows = [
        {"input": "a.png", "output": "b.png", "instruction": said}
        for said in ("open it", "let it be open", "open it")
    ]
    rows.append({"input": "c.png", "output": "d.png", "instruction": "open it"})
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    (tmp_path / "heldout.json").write_text(json.dumps(rows[3:]))
    cfg = config(tmp_path / "rows.json", heldout_path=tmp_path / "heldout.json")
    tables, counted, _ = build(cfg, tmp_path / "out", images)
    assert sorted(tables["labelled"]["action"].to_pylist()) == ["let it be open", "open it"]
    assert len(set(tables["labelled"]["pair_id"].to_pylist())) == 2
    assert counted["labelled"]["rejects"] == {"duplicate_pair": 1, "in_heldout": 1}


def test_nothing_usable_and_nothing_there_are_one_line(images, tmp_path):
    root = write_aurora(tmp_path / "set")
    with pytest.raises(UserError, match=r"no pair can be used.*aurora.*action_tokens"):
        build(config(root), tmp_path / "out", images, fits=lambda action: False)
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="nowhere does not exist"):
        build(config(tmp_path / "nowhere"), tmp_path / "out", images)


def test_labelled_pairs_are_taught_mirrored_with_their_words_and_held_out_ones_are_not(
    images, tmp_path
):
    rows = []
    for name in "abcdef":
        (tmp_path / f"{name}.png").write_bytes(picture(ord(name)))
    for before, after in ("ab", "cd", "ef"):
        said = "Left of it, not leftwards"
        rows.append({"input": f"{before}.png", "output": f"{after}.png", "instruction": said})
    (tmp_path / "rows.json").write_text(json.dumps(rows[:2]))
    (tmp_path / "heldout.json").write_text(json.dumps(rows[2:]))
    paths = {"heldout_path": tmp_path / "heldout.json"}
    plain, _, _ = build(config(tmp_path / "rows.json", **paths), tmp_path / "plain", images)
    cfg = config(tmp_path / "rows.json", mirror={"left": "right"}, **paths)
    tables, _, _ = build(cfg, tmp_path / "twice", images)
    said = tables["labelled"]["action"].to_pylist()
    assert said == ["Left of it, not leftwards", "Right of it, not leftwards"] * 2
    assert tables["labelled"].take([0, 2]).equals(plain["labelled"])
    assert tables["heldout"].equals(plain["heldout"])
    assert tables["labelled"]["source_codes"][0] != tables["labelled"]["source_codes"][1]
    assert len(set(tables["labelled"]["pair_id"].to_pylist())) == 4
