"""The leakage search as two streams: hashes of the held-out pairs, then the pool against them.

READ takes codes from the tables; WORK decodes each distinct frame once, hashes it, and compares.
`dynamics.evaluation.guards.leakage` says what a leak is.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dynamics.core.progress import Progress
from dynamics.core.records import PAIR_SCHEMA, TRANSITION_SCHEMA, DatasetRef
from dynamics.evaluation.guards.leakage import (
    Hashes,
    Leakage,
    count_leakage,
    near_pairs,
    num_lookalikes,
    pair_hashes,
)
from dynamics.models.image_tokenizer import ImageTokenizer
from dynamics.storage.shards import Shard, cut, read_shard
from dynamics.storage.streams import Done, RunStream, Stream

_PIXELS_A_SLICE = 1 << 24
"""Pairs are searched in slices of about so many pixels: 64 of 512 px, 16,384 of 32 px."""
_COLUMNS = ["clip_sha256", "source_codes", "target_codes"]


def find_leakage(
    pool: DatasetRef,
    heldout: DatasetRef,
    load: Callable[[], ImageTokenizer],
    frame_px: int,
    run: RunStream,
    progress: Progress,
) -> Leakage:
    """Count the held-out pairs that the pool holds.

    Args:
        pool: PAIR_SCHEMA.
        heldout: TRANSITION_SCHEMA.
        load: loads the image tokenizer in the process that shall decode; picklable.
        frame_px: side of its frames.
        run: runs the work.
        progress: called with the number of pairs that were searched.
    """
    rows = max(1, _PIXELS_A_SLICE // frame_px**2)
    first = Stream(
        what="hash the held-out pairs",
        items=cut(heldout.num_rows, rows),
        total=heldout.num_rows,
        read=partial(read_shard, heldout, columns=_COLUMNS, schema=TRANSITION_SCHEMA),
        make_worker=partial(HashWorker, load),
    )
    parts = [done.found for done in run(first, progress) if done.found is not None]
    found = pa.concat_tables(parts).sort_by("row")
    second = Stream(
        what="search the pool for held-out pairs",
        items=cut(pool.num_rows, rows),
        total=pool.num_rows,
        read=partial(read_shard, pool, columns=_COLUMNS, schema=PAIR_SCHEMA),
        make_worker=partial(SearchWorker, load, found),
    )
    same_B, alike_B = (np.zeros(heldout.num_rows, dtype=bool) for _ in range(2))
    for done in run(second, progress):
        if done.found is not None:
            same_B |= done.found["same"].to_numpy()
            alike_B |= done.found["alike"].to_numpy()
    hashes = _hashes(found["source"]), _hashes(found["target"])
    by_chance = num_lookalikes(hashes, found["clip_sha256"].to_pylist(), pool.num_rows)
    return count_leakage(same_B, alike_B, by_chance)


class HashWorker:
    """Hashes of held-out pairs: ``row``, ``clip_sha256``, ``source`` and ``target`` as bytes."""

    def __init__(self, load: Callable[[], ImageTokenizer]) -> None:
        self._images = load()

    def run(self, item: Shard, rows: pa.Table) -> Done:
        """Hash the frames of a slice."""
        source_BU, target_BU = pair_hashes(rows, self._images)
        found = pa.table(
            {
                "row": range(item.start, item.stop),
                "clip_sha256": rows["clip_sha256"],
                "source": [hashed.tobytes() for hashed in source_BU],
                "target": [hashed.tobytes() for hashed in target_BU],
            }
        )
        return Done(count=rows.num_rows, found=found)


class SearchWorker:
    """Compares slices of the pool with all held-out pairs, which `HashWorker` hashed."""

    def __init__(self, load: Callable[[], ImageTokenizer], heldout: pa.Table) -> None:
        self._images = load()
        self._clips = heldout["clip_sha256"]
        self._hashes = (_hashes(heldout["source"]), _hashes(heldout["target"]))

    def run(self, item: Shard, rows: pa.Table) -> Done:
        """The held-out pairs that the slice holds, by bytes and by looks; None without any."""
        same_B = pc.is_in(self._clips, value_set=pc.unique(rows["clip_sha256"])).to_numpy()
        alike_B = near_pairs(self._hashes, pair_hashes(rows, self._images))
        if not (same_B | alike_B).any():
            return Done(count=rows.num_rows)
        return Done(count=rows.num_rows, found=pa.table({"same": same_B, "alike": alike_B}))


def _hashes(column: pa.ChunkedArray) -> Hashes:
    return np.stack([np.frombuffer(value.as_buffer(), np.uint64) for value in column])
