"""Units: some clips, or labelled pairs, that are read, encoded and kept together.

    data/codes/<sha256>.safetensors       codes of a unit's frames
    data/pool.parts/units/<key>.parquet   its rows in stored form and what became of its entries;
                                          the last write of a unit, until the table is whole

A key says which entries a unit has, in which version: what is found under it need not be made
again, and a file that has changed is read again. Of two workers with the same unit the first wins.

F frames, P pairs, L codes a frame, H = W frame pixels.
"""

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dynamics.core.errors import UserError
from dynamics.core.places import Place
from dynamics.core.progress import Progress
from dynamics.core.records import stable_hash
from dynamics.data.video.sandbox import close_decoders
from dynamics.models.image_tokenizer import ImageTokenizer, Precision
from dynamics.storage.files import create_bytes, remove_tree
from dynamics.storage.pairs import store_codes, stored_schema
from dynamics.storage.parquet import check_seal, sealed_parquet
from dynamics.storage.streams import Done, RunStream, Stream

Entry = TypeVar("Entry")

UNIT_BYTES = 32 << 20
"""Frames of a unit, at most about so many bytes."""
MOST_ENTRIES = 32
"""Of small frames: a unit is lost by a kill, and the last ones keep a single reader busy."""
_VERDICTS = b"verdicts"
_CODES = frozenset({"source_codes", "target_codes", "recognition"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit(Generic[Entry]):
    """Some clips or labelled pairs."""

    key: str
    entries: tuple[Entry, ...]


Read = Callable[[Unit[Any]], pa.Table]
"""Reads a unit; one row an entry, `read_schema`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """How frames become codes."""

    codes: Place
    """Folder of the codes files."""
    load: Callable[[Precision], ImageTokenizer]
    """Loads the image tokenizer in the process that shall encode; picklable."""
    decide: Callable[[Unit[Any], Read], Precision]
    """Called once a table with its first unit, where it is not whole."""


def read_schema(schema: pa.Schema) -> pa.Schema:
    """What is read of an entry, for a table of ``schema``: pixels, and all of its rows but codes.

    ``verdict`` is JSON; ``frames`` are uint8 [F, H, W, 3]; a pair's ``source`` and ``target`` count
    in the frames of its own entry.
    """
    small = [field for field in schema if field.name not in _CODES]
    places = [pa.field(name, pa.int32(), nullable=False) for name in ("source", "target")]
    return pa.schema(
        [
            pa.field("verdict", pa.string(), nullable=False),
            pa.field("frames", pa.large_binary(), nullable=False),
            pa.field("pairs", pa.list_(pa.struct([*small, *places])), nullable=False),
        ]
    )


def cut_units(
    entries: Iterable[Entry], size: int, describe: Callable[[Entry], Sequence[str | int]]
) -> Iterator[Unit[Entry]]:
    """Units of ``size`` entries; ``describe`` is all that decides what is read of an entry."""
    rest = iter(entries)
    while part := tuple(islice(rest, size)):
        key = stable_hash(*(value for entry in part for value in (*describe(entry), "\x1e")))
        yield Unit(key=key, entries=part)


def unit_size(wanted: int | None, entry_bytes: int) -> int:
    """Entries of a unit; ``entry_bytes`` are the most that one's frames take."""
    return wanted or max(1, min(MOST_ENTRIES, UNIT_BYTES // entry_bytes))


@dataclass(frozen=True, slots=True)
class UnitFolder:
    """The finished units of a table that is not whole yet."""

    folder: Place
    schema: pa.Schema
    """PAIR_SCHEMA or TRANSITION_SCHEMA."""

    def finished(self) -> set[str]:
        """Keys of the units that are there."""
        return {path.stem for path in self.folder.glob("*.parquet")}

    def write(self, key: str, rows: pa.Table, verdicts: Sequence[str]) -> None:
        """Keep a unit's stored rows and verdicts, durably; whoever comes second changes nothing."""
        schema = stored_schema(self.schema).with_metadata({_VERDICTS: f"[{','.join(verdicts)}]"})
        payload = sealed_parquet(rows.select(schema.names).cast(schema))
        create_bytes(self._path(key), payload)

    def read(self, key: str) -> tuple[pa.Table, list[dict[str, Any]]]:
        """Stored rows and verdicts of a unit.

        Raises:
            UserError: it is missing or damaged.
        """
        path = self._path(key)
        try:
            found = pq.read_table(pa.BufferReader(check_seal(path.read_bytes())))
            verdicts = json.loads(found.schema.metadata[_VERDICTS])
        except FileNotFoundError as error:
            raise UserError(
                f"{path} was written and is not here; do all nodes see its folder as one? the same "
                "command makes it again"
            ) from error
        except (pa.ArrowInvalid, ValueError, OSError) as error:
            raise UserError(f"{path} is damaged; delete it and run the command again") from error
        return found.replace_schema_metadata(None), verdicts

    def remove(self) -> None:
        """Delete all units: the table has their rows."""
        remove_tree(self.folder)

    def _path(self, key: str) -> Place:
        return self.folder / f"{key}.parquet"


class EncodeWorker:
    """An image tokenizer that turns what was read of units into codes and finished units."""

    def __init__(self, load: Callable[[], ImageTokenizer], codes: Place, units: UnitFolder) -> None:
        self._images = load()
        self._codes = codes
        self._units = units

    def run(self, item: Unit[Any], rows: pa.Table) -> Done:
        """Encode the frames of a unit, equal ones once."""
        pairs, frames = unpacked(rows, self._images.frame_px)
        stored = stored_schema(self._units.schema).empty_table()
        if pairs.num_rows:
            codes_FL, features_FLD = self._encoded(frames)
            sources, targets = (pairs[name].to_numpy() for name in ("source", "target"))
            stored = store_codes(
                self._codes,
                pairs.drop_columns(["source", "target"]),
                codes_FL.astype(np.uint16),
                sources,
                targets,
                np.square(features_FLD[targets] - features_FLD[sources]).sum(-1),
            )
        self._units.write(item.key, stored, rows["verdict"].to_pylist())
        return Done(count=rows.num_rows, found=pa.table({"key": [item.key]}))

    def _encoded(self, frames_FHW3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Codes and features of all frames; instructions often share a picture."""
        digests = [hashlib.sha256(frame.tobytes()).hexdigest() for frame in frames_FHW3]
        _, first, place_F = np.unique(digests, return_index=True, return_inverse=True)
        codes_UL, features_ULD = self._images.encode_with_features(frames_FHW3[first])
        return codes_UL[place_F], features_ULD[place_F]


class PrecisionWorker:
    """Measures the share of a unit's codes that are the same in bfloat16."""

    def __init__(self, load: Callable[[Precision], ImageTokenizer]) -> None:
        self._full, self._half = load("float32"), load("bfloat16")

    def run(self, item: Unit[Any], rows: pa.Table) -> Done:
        """Encode the unit's frames twice."""
        _, frames = unpacked(rows, self._full.frame_px)
        equal = self._full.encode(frames) == self._half.encode(frames) if len(frames) else [False]
        return Done(count=rows.num_rows, found=pa.table({"equal": [float(np.mean(equal))]}))


def unpacked(rows: pa.Table, frame_px: int) -> tuple[pa.Table, np.ndarray]:
    """Pairs and frames, uint8 [F, H, W, 3], of what was read; places count in all frames."""
    frames = np.concatenate(
        [
            np.frombuffer(value.as_buffer(), np.uint8).reshape(-1, frame_px, frame_px, 3)
            for value in rows["frames"]
        ]
    )
    sizes = [value.as_buffer().size // (3 * frame_px**2) for value in rows["frames"]]
    lists = rows["pairs"].combine_chunks()
    offsets_P = np.repeat(np.cumsum([0, *sizes[:-1]]), lists.value_lengths().to_numpy())
    pairs = pa.Table.from_batches([pa.RecordBatch.from_struct_array(lists.flatten())])
    for name in ("source", "target"):
        place = pairs.schema.get_field_index(name)
        pairs = pairs.set_column(place, name, pa.array(pairs[name].to_numpy() + offsets_P))
    return pairs, frames


def made_units(
    cut: Callable[[], Iterator[Unit[Entry]]],
    read: Read,
    folder: UnitFolder,
    encoding: Encoding,
    run: RunStream,
    progress: Progress,
    *,
    what: str,
    total: int,
) -> Iterator[tuple[pa.Table, list[dict[str, Any]]]]:
    """Stored rows and verdicts of all units in their order, as they come; makes the missing ones.

    ``cut`` lists the units, each time the same; ``total`` counts their entries.
    """
    finished = folder.finished()
    order: deque[str] = deque()

    def missing() -> Iterator[Unit[Entry]]:
        for unit in cut():
            order.append(unit.key)
            if unit.key not in finished:
                yield unit

    units = missing()
    first = list(islice(units, 1))
    precision: Precision = encoding.decide(first[0], read) if first else "float32"
    load = partial(encoding.load, precision)
    stream = Stream(
        what=what,
        items=chain(first, units),
        total=total,
        done=sum(len(unit.entries) for unit in cut() if unit.key in finished) if finished else 0,
        read=read,
        make_worker=partial(EncodeWorker, load, encoding.codes, folder),
        stop_reading=close_decoders,
        costly_reads=True,
    )
    for result in run(stream, progress):
        assert result.found is not None
        finished.update(result.found["key"].to_pylist())
        while order and order[0] in finished:
            yield folder.read(order.popleft())
    while order:
        yield folder.read(order.popleft())


def equal_codes(
    load: Callable[[Precision], ImageTokenizer],
    first: Unit[Any],
    read: Read,
    run: RunStream,
    progress: Progress,
) -> float:
    """Share of a unit's codes that are the same in bfloat16, measured where units are encoded."""
    stream = Stream(
        what="compare precisions",
        items=[first],
        total=len(first.entries),
        read=read,
        make_worker=partial(PrecisionWorker, load),
        stop_reading=close_decoders,
    )
    (done,) = run(stream, progress)
    assert done.found is not None
    return float(done.found["equal"][0].as_py())
