"""What every labelled set promises: one suite over DATASETS."""

import os
import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pytest

from dynamics.core.config import LoopConfig
from dynamics.core.errors import UserError
from dynamics.core.records import TRANSITION_SCHEMA
from dynamics.data.labelled import DATASETS
from dynamics.data.labelled.listing import (
    MAX_ACTION_CHARS,
    Labelled,
    LabelledPair,
    Segment,
    Stills,
)
from dynamics.data.labelled.read import PairReader, read_pairs
from dynamics.data.labelled.split import split
from dynamics.data.units import UnitFolder
from dynamics.models import load_image_tokenizer
from dynamics.models.image_tokenizer import ImageTokenizer
from dynamics.storage.pairs import TableWriter, list_matrix
from dynamics.storage.tables import codes_matrix, read_table
from tests.made_data import DATASET_WRITERS
from tests.stores import upload
from tests.unit.data.video.conftest import encoding_with


@pytest.fixture(scope="module")
def images() -> ImageTokenizer:
    cfg = LoopConfig()
    return load_image_tokenizer(cfg.model.family, cfg.base_path())


@pytest.fixture(params=sorted(DATASETS))
def listed(request: pytest.FixtureRequest, tmp_path: Path) -> Labelled:
    return DATASETS[request.param](DATASET_WRITERS[request.param](tmp_path))


class Rows(NamedTuple):
    table: pa.Table
    """TRANSITION_SCHEMA."""
    rejects: list[tuple[str, str]]


def read(pairs: Sequence[LabelledPair], wanted: int, images: ImageTokenizer, out: Path) -> Rows:
    reader = PairReader(frame_px=images.frame_px, bars=images.bars, memory_mb=1024, timeout_s=20)
    units = UnitFolder(out / "p.parts" / "units", TRANSITION_SCHEMA)
    encoding = encoding_with(lambda: images, out / "codes")
    found = read_pairs(pairs, wanted, lambda action: True, reader, units, encoding)
    writer = TableWriter(out / "p.parts", TRANSITION_SCHEMA, encoding.codes)
    writer.append(found.table)
    return Rows(read_table(writer.finish(), TRANSITION_SCHEMA), list(found.rejects))


def everything(listed: Labelled, images: ImageTokenizer, out: Path) -> Rows:
    return read(listed.pairs, 1000, images, out)


def test_every_set_has_a_sample():
    assert set(DATASETS) == set(DATASET_WRITERS)


def test_pairs_have_plain_text_sources_and_a_place(listed):
    assert len(listed.pairs) >= 4
    for place, pair in enumerate(listed.pairs):
        assert 0 < len(pair.action) <= MAX_ACTION_CHARS
        assert pair.action == " ".join(pair.action.split())
        assert pair.sources
        assert all(pair.sources)
        assert pair.place == place
        assert not os.path.isabs(pair.name)


def test_every_listed_pair_of_sound_files_becomes_a_row(listed, images, tmp_path):
    rows = everything(listed, images, tmp_path / "out")
    assert rows.rejects == []
    assert rows.table.schema == TRANSITION_SCHEMA
    assert rows.table["action"].to_pylist() == [pair.action for pair in listed.pairs]
    assert rows.table["clip_path"].to_pylist() == [pair.name for pair in listed.pairs]
    assert set(rows.table["origin"].to_pylist()) == {"labelled"}
    assert len(set(rows.table["pair_id"].to_pylist())) == rows.table.num_rows
    assert all(motion > 0 for motion in rows.table["motion"].to_pylist())
    source, target = (codes_matrix(rows.table, f"{end}_codes") for end in ("source", "target"))
    assert source.shape == (len(listed.pairs), images.num_tokens)
    assert (source != target).any(axis=1).all()
    assert (list_matrix(rows.table, "recognition").max(axis=1) > 0).all()


def test_listing_reads_no_pixel(listed):
    for pair in listed.pairs:
        if isinstance(pair.frames, Segment):
            assert pair.frames.path.is_file()
        else:
            assert len(pair.frames.source.read()) > 0


def test_no_source_is_in_labelled_and_heldout_set(listed):
    seed, heldout = split(listed.pairs, 0.4, seed=3)
    assert len(seed) + len(heldout) == len(listed.pairs)
    assert seed
    assert heldout
    sources = [{source for pair in part for source in pair.sources} for part in (seed, heldout)]
    assert not sources[0] & sources[1]
    assert split(listed.pairs, 0.4, seed=3) == (seed, heldout)


def test_reading_twice_gives_equal_rows(listed, images, tmp_path):
    one, two = (everything(listed, images, tmp_path / name).table for name in "ab")
    assert one.equals(two)


def test_pairs_are_read_in_other_processes_too(listed):
    pair = pickle.loads(pickle.dumps(listed.pairs[0]))
    assert replace(pair, frames=listed.pairs[0].frames) == listed.pairs[0]
    if isinstance(pair.frames, Stills):
        assert pair.frames.target.read() == listed.pairs[0].frames.target.read()


def test_an_empty_folder_says_where_to_get_the_set(tmp_path):
    for name, read in DATASETS.items():
        with pytest.raises(UserError) as caught:
            read(tmp_path)
        message = str(caught.value)
        assert "\n" not in message
        assert "http" in message or "dynamics/data/labelled/table.py" in message, name


def test_rows_come_in_the_order_that_was_asked_for(listed, images, tmp_path):
    order = np.random.default_rng(0).permutation(len(listed.pairs))
    pairs = [listed.pairs[index] for index in order]
    rows = read(pairs, len(pairs) - 1, images, tmp_path / "out")
    assert rows.table["action"].to_pylist() == [pair.action for pair in pairs[:-1]]


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_a_set_in_a_store_has_the_rows_of_its_folder(name, s3, images, tmp_path):
    (tmp_path / "set").mkdir()
    here = DATASET_WRITERS[name](tmp_path / "set")
    upload(tmp_path / "set", s3)
    there = s3 / here.relative_to(tmp_path / "set")
    ours, theirs = DATASETS[name](here), DATASETS[name](there)
    assert theirs.rejects == ours.rejects
    rows = everything(theirs, images, tmp_path / "theirs")
    assert rows.rejects == []
    assert rows.table.equals(everything(ours, images, tmp_path / "ours").table)
