"""What every labelled set promises: one suite over DATASETS."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dynamics.core.config import LoopConfig
from dynamics.core.errors import UserError
from dynamics.core.records import TRANSITION_SCHEMA
from dynamics.data.labelled import DATASETS
from dynamics.data.labelled.listing import MAX_ACTION_CHARS, Labelled, Segment
from dynamics.data.labelled.read import LabelledRows, read_pairs
from dynamics.data.labelled.split import split
from dynamics.data.video.sandbox import DecodePool
from dynamics.models import load_image_tokenizer
from dynamics.models.image_tokenizer import ImageTokenizer
from dynamics.storage.pairs import list_matrix
from dynamics.storage.tables import codes_matrix
from tests.made_data import DATASET_WRITERS


@pytest.fixture(scope="module")
def decoders() -> Iterator[DecodePool]:
    with DecodePool(2, memory_mb=1024, timeout_s=20) as pool:
        yield pool


@pytest.fixture(scope="module")
def images() -> ImageTokenizer:
    cfg = LoopConfig()
    return load_image_tokenizer(cfg.model.family, cfg.base_path())


@pytest.fixture(params=sorted(DATASETS))
def listed(request: pytest.FixtureRequest, tmp_path: Path) -> Labelled:
    return DATASETS[request.param](DATASET_WRITERS[request.param](tmp_path))


def everything(listed: Labelled, images: ImageTokenizer, decoders: DecodePool) -> LabelledRows:
    return read_pairs(listed.pairs, 1000, images, lambda action: True, decoders)


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


def test_every_listed_pair_of_sound_files_becomes_a_row(listed, images, decoders):
    rows = everything(listed, images, decoders)
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


def test_reading_twice_gives_equal_rows(listed, images, decoders):
    one, two = (everything(listed, images, decoders).table for _ in range(2))
    assert one.equals(two)


def test_an_empty_folder_says_where_to_get_the_set(tmp_path):
    for name, read in DATASETS.items():
        with pytest.raises(UserError) as caught:
            read(tmp_path)
        message = str(caught.value)
        assert "\n" not in message
        assert "http" in message or "dynamics/data/labelled/table.py" in message, name


def test_rows_come_in_the_order_that_was_asked_for(listed, images, decoders):
    order = np.random.default_rng(0).permutation(len(listed.pairs))
    pairs = [listed.pairs[index] for index in order]
    rows = read_pairs(pairs, len(pairs) - 1, images, lambda action: True, decoders)
    assert rows.table["action"].to_pylist() == [pair.action for pair in pairs[:-1]]
