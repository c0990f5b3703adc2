"""Parquet files with pictures in them, written piece by piece."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

IMAGE_TYPE = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
"""Picture type of Hugging Face ``datasets``."""
FILE_BYTES = 256 * 2**20
"""Size at which a file is closed."""
_GROUP_BYTES = 16 * 2**20
"""Size of the pictures in memory at which their rows are written."""


def image_cell(png: bytes, name: str) -> dict[str, Any]:
    """A cell of IMAGE_TYPE."""
    return {"bytes": png, "path": name}


class ParquetShards:
    """Rows into numbered files; rows that are added together stay in one file."""

    def __init__(self, schema: pa.Schema, path_of: Callable[[int], Path]) -> None:
        self._schema = schema
        self._path_of = path_of
        self._writer: pq.ParquetWriter | None = None
        self._number = -1
        self._waiting: list[dict[str, Any]] = []
        self._waiting_bytes = self._file_bytes = 0

    def add(self, rows: Sequence[dict[str, Any]], num_bytes: int) -> int:
        """Add rows whose pictures have ``num_bytes``; returns the number of their file."""
        if self._writer is None:
            self._number += 1
            path = self._path_of(self._number)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = pq.ParquetWriter(path, self._schema, compression="zstd")
        self._waiting += rows
        self._waiting_bytes += num_bytes
        self._file_bytes += num_bytes
        if self._waiting_bytes >= _GROUP_BYTES:
            self._flush()
        if self._file_bytes >= FILE_BYTES:
            self.close()
        return self._number

    def close(self) -> None:
        """End the file."""
        if self._writer is not None:
            self._flush()
            self._writer.close()
            self._writer, self._file_bytes = None, 0

    def _flush(self) -> None:
        if self._writer is not None and self._waiting:
            self._writer.write_table(pa.Table.from_pylist(self._waiting, schema=self._schema))
            self._waiting, self._waiting_bytes = [], 0
