"""Sorting more rows than fit into memory: buckets by the first digits of a key, on a local disk."""

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dynamics.storage.files import full_disk_named

_BUCKET_ROWS = 262_144
"""Rows that a bucket shall have at most; its table is in memory."""
_HEX_DIGITS = 16
_MOST_DIGITS = 2
"""Then 256 files are open, and more than 67 million rows make larger buckets."""
_SPILLED_ROWS = 131_072
"""Rows that wait in memory until they are spilled together."""


class Buckets:
    """Rows by a key of hexadecimal digits that are evenly spread, as every hash is.

    Few rows are kept in memory, more in a temporary folder, which goes when the body ends.

    Args:
        schema: of the rows.
        key: column that they are told apart by.
        num_rows: about how many there will be.
    """

    def __init__(self, schema: pa.Schema, key: str, num_rows: int) -> None:
        self._schema, self._key = schema, key
        self.digits = 0
        while num_rows > _BUCKET_ROWS * _HEX_DIGITS**self.digits and self.digits < _MOST_DIGITS:
            self.digits += 1
        self._waiting: list[pa.Table] = []
        self._num_waiting = 0
        self._writers: dict[str, pa.ipc.RecordBatchStreamWriter] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        if self.digits:
            name = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="buckets-"))
            self._folder = Path(name)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def add(self, rows: pa.Table) -> None:
        """Add rows, in any order."""
        self._waiting.append(rows)
        self._num_waiting += rows.num_rows
        if self.digits and self._num_waiting >= _SPILLED_ROWS:
            self._spill()

    def prefixes(self) -> list[str]:
        """First digits of the keys of all buckets with rows, ascending; after the last `add`."""
        if not self.digits:
            return [""]
        self._spill()
        for writer in self._writers.values():
            writer.close()
        return sorted(self._writers)

    def bucket(self, prefix: str) -> pa.Table:
        """Rows whose keys begin with ``prefix``, in the order of `add`; once, after `prefixes`."""
        if not self.digits:
            return pa.concat_tables([self._schema.empty_table(), *self._waiting])
        if prefix not in self._writers:
            return self._schema.empty_table()
        path = self._folder / prefix
        with pa.memory_map(str(path)) as source:
            rows = pa.ipc.open_stream(source).read_all()
        path.unlink()
        return rows

    def _spill(self) -> None:
        rows = pa.concat_tables([self._schema.empty_table(), *self._waiting])
        self._waiting, self._num_waiting = [], 0
        prefixes = pc.utf8_slice_codeunits(rows[self._key], 0, self.digits)
        encoded = prefixes.combine_chunks().dictionary_encode()
        place_B = encoded.indices.to_numpy()
        order = np.argsort(place_B, kind="stable")
        rows = rows.take(order).combine_chunks()
        prefixes = encoded.dictionary.to_pylist()
        sizes = np.bincount(place_B, minlength=len(prefixes))
        for prefix, start, size in zip(prefixes, np.cumsum(sizes) - sizes, sizes, strict=True):
            with full_disk_named(self._folder, rows.nbytes):
                self._writer(prefix).write_table(rows.slice(start, size))

    def _writer(self, prefix: str) -> pa.ipc.RecordBatchStreamWriter:
        if prefix not in self._writers:
            sink = self._stack.enter_context(pa.OSFile(str(self._folder / prefix), "wb"))
            options = pa.ipc.IpcWriteOptions(compression="lz4")
            self._writers[prefix] = pa.ipc.new_stream(sink, self._schema, options=options)
        return self._writers[prefix]
