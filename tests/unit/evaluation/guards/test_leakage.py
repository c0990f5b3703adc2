"""Held-out clips in the pool, on photographs of tabletop scenes with their own light and noise."""

import time
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa

from dynamics.core.config import WorldConfig
from dynamics.core.records import PAIR_SCHEMA, TRANSITION_SCHEMA, DatasetRef
from dynamics.core.seeds import numpy_rng
from dynamics.evaluation.guards import search
from dynamics.evaluation.guards.leakage import (
    SIDE,
    Leakage,
    count_leakage,
    hash_codes,
    leaked_pairs,
    near_pairs,
    num_lookalikes,
    perceptual_hashes,
)
from dynamics.storage.streams import run_stream
from dynamics.storage.tables import read_table, write_table
from dynamics.tabletop.film import film_frames, sample_episode

WORLD = WorldConfig(hold_frames=2, film_scale=2)


class Photographs:
    """An image tokenizer whose codes are pixels."""

    frame_px = WORLD.frame_px
    bars = None
    num_tokens = WORLD.frame_px**2 * 3
    num_codes = 256
    decoded = 0

    def decode(self, codes_BL: np.ndarray) -> np.ndarray:
        self.decoded += len(codes_BL)
        return codes_BL.reshape(-1, self.frame_px, self.frame_px, 3).astype(np.uint8)


def photographs(num_pairs: int, seed: int) -> np.ndarray:
    """Pairs of scenes [num_pairs, 2, H, W, 3], each in a light of its own."""
    pairs = []
    for number in range(num_pairs):
        rng = numpy_rng("leakage", seed, number)
        states, _ = sample_episode(WORLD, 1, rng)
        frames = film_frames(states, WORLD, rng)[:: WORLD.hold_frames].astype(np.float32)
        size, scale = WORLD.frame_px, WORLD.film_scale
        pairs.append(frames.reshape(2, size, scale, size, scale, 3).mean(axis=(2, 4)))
    return np.rint(pairs).astype(np.uint8)


def again(pairs: np.ndarray, gain: float = 0.95, noise: float = 6.0) -> np.ndarray:
    """The same photographs, darker and with coarse noise, as another encoding leaves them."""
    spots = np.random.default_rng(0).normal(0, noise, pairs.shape)
    return np.clip(pairs * gain + spots, 0, 255).astype(np.uint8)


def table(pairs: np.ndarray, clip: str) -> pa.Table:
    """Pairs as rows, each from a clip of its own."""
    codes = pairs.reshape(len(pairs), 2, -1).astype(np.uint16)
    return pa.table(
        {
            "clip_sha256": [f"{clip}-{number}" for number in range(len(pairs))],
            "source_codes": list(codes[:, 0]),
            "target_codes": list(codes[:, 1]),
        }
    )


@cache
def held_out() -> np.ndarray:
    return photographs(60, 1)


@cache
def others() -> np.ndarray:
    return photographs(300, 2)


def leaks(pool: pa.Table, heldout: pa.Table) -> Leakage:
    return count_leakage(*leaked_pairs(pool, heldout, Photographs()))


def test_held_out_clips_in_the_pool_are_found_by_digest_and_by_hash():
    by_chance = count_leakage(
        *leaked_pairs(table(others(), "p"), table(held_out(), "h"), Photographs())
    )
    assert (by_chance.num_heldout, by_chance.either) == (60, 0)
    whole = table(held_out(), "h")
    anew = table(again(held_out()[20:30]), "a")
    pool = pa.concat_tables([table(others(), "p"), whole.slice(0, 4), anew])
    same, alike = leaked_pairs(pool, whole, Photographs())
    assert np.flatnonzero(same).tolist() == [0, 1, 2, 3]
    assert np.flatnonzero(alike).tolist() == [0, 1, 2, 3, *range(20, 30)]
    found = leaks(pool, whole)
    assert (found.by_digest, found.by_hash, found.either) == (4, 14, 14)


def test_equal_bytes_are_a_leak_even_where_the_frames_are_others():
    pool = table(others()[:5], "h")  # clip h-0, cut at other frames
    found = leaks(pool, table(held_out(), "h"))
    assert (found.by_digest, found.by_hash, found.either) == (5, 0, 5)


def test_half_a_pair_is_no_leak():
    mixed = np.stack([held_out()[:20, 0], others()[:20, 1]], axis=1)
    assert (
        count_leakage(
            *leaked_pairs(table(mixed, "m"), table(held_out(), "h"), Photographs())
        ).either
        == 0
    )


def test_frames_without_an_edge_look_like_nothing():
    grey = np.full((3, 2, WORLD.frame_px, WORLD.frame_px, 3), 90, np.uint8)
    assert leaks(table(grey, "p"), table(grey, "h")).by_hash == 0


def test_few_lookalikes_among_the_held_out_are_many_in_a_large_pool():
    frames = held_out()[:20].copy()
    frames[1] = again(frames[0])
    hashes = perceptual_hashes(frames[:, 0]), perceptual_hashes(frames[:, 1])
    clips = [f"{row:02d}" for row in range(20)]
    assert [num_lookalikes(hashes, clips, pool) for pool in (10, 50, 10_000)] == [2, 10, 20]


def test_a_hash_does_not_change_with_the_size_of_the_frame():
    frames = held_out()[:, 0]
    large = frames.repeat(4, axis=1).repeat(4, axis=2)
    assert perceptual_hashes(frames).shape == (60, 3 * 4 * SIDE**2 // 64)
    np.testing.assert_array_equal(perceptual_hashes(frames), perceptual_hashes(large))


def test_each_distinct_frame_is_decoded_once():
    images = Photographs()
    codes_BL = held_out()[:3, 0].reshape(3, -1).astype(np.int64)[[0, 1, 0, 2, 2]]
    hashes = hash_codes(codes_BL, images)
    assert images.decoded == 3
    np.testing.assert_array_equal(hashes, perceptual_hashes(held_out()[[0, 1, 0, 2, 2], 0]))


def test_the_default_pool_is_searched_within_seconds():
    rng = np.random.default_rng(0)
    pairs, more = (
        tuple(rng.integers(0, 2**63, (rows, 48), dtype=np.uint64) for _ in range(2))
        for rows in (1_000, 12_000)
    )
    start = time.process_time()
    assert not near_pairs(pairs, more).any()
    assert time.process_time() - start < 10


def write(rows: np.ndarray, prefix: str, path: Path, schema: pa.Schema) -> DatasetRef:
    """The table of photographs with all its columns."""
    found = table(rows, prefix)
    full = {field.name: [""] * len(rows) for field in schema if pa.types.is_string(field.type)}
    full |= {name: [0] * len(rows) for name in ("frame0", "frame1", "t0_s", "t1_s", "motion")}
    full |= {"pair_id": [f"{prefix}{row}" for row in range(len(rows))]}
    full |= {"recognition": [np.zeros(found["source_codes"][0].as_py().__len__())] * len(rows)}
    full |= {name: found[name].to_pylist() for name in found.column_names}
    return write_table(path, pa.Table.from_pydict(full, schema), schema)


def test_the_search_by_slices_finds_what_the_search_in_memory_finds(tmp_path, monkeypatch):
    monkeypatch.setattr(search, "_PIXELS_A_SLICE", 7 * WORLD.frame_px**2)
    rows = np.concatenate([others()[:40], held_out()[:4], again(held_out()[20:30])])
    pool = write(rows, "p", tmp_path / "pool.parquet", PAIR_SCHEMA)
    heldout = write(held_out()[:32], "h", tmp_path / "heldout.parquet", TRANSITION_SCHEMA)
    calls = []
    found = search.find_leakage(
        pool, heldout, Photographs, WORLD.frame_px, run_stream, lambda *call: calls.append(call)
    )
    columns = ["clip_sha256", "source_codes", "target_codes"]
    tables = (
        read_table(ref.path, schema, columns)
        for ref, schema in ((pool, PAIR_SCHEMA), (heldout, TRANSITION_SCHEMA))
    )
    assert found == leaks(*tables)
    assert found.by_hash == 14
    assert calls[-1][:2] == (54, 54)
