"""Codes files: the image codes of some clips' frames, written once, shared by every table of a run.

    data/codes/<sha256>.safetensors   frames uint16 [F, L], recognition float16 [P, L]

A file is checked against its name when a process opens it first; then rows are read where they lie,
so that nothing but the wanted rows comes into memory.

F frames, P pairs, L codes a frame, B rows that are read.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from dynamics.core.errors import UserError
from dynamics.core.places import Place
from dynamics.storage.files import create_bytes, local_copy, sha256_file

Kind = Literal["frames", "recognition"]

_DTYPES = {"frames": np.dtype(np.uint16), "recognition": np.dtype(np.float16)}
_OPEN_FILES = 256
_SPARSE = 4
"""Rows are read one by one when the span from the first to the last is longer by this factor."""
_checked: set[Place] = set()


def write_codes(
    folder: Place, frames_FL: NDArray[np.uint16], recognition_PL: NDArray[np.float16]
) -> str:
    """Write a codes file durably; returns its name, the sha256 of its bytes."""
    arrays = {"frames": frames_FL, "recognition": recognition_PL}
    payload = safetensors.numpy.save(
        {name: np.ascontiguousarray(values, _DTYPES[name]) for name, values in arrays.items()}
    )
    digest = hashlib.sha256(payload).hexdigest()
    create_bytes(_path(folder, digest), payload)
    return digest


def read_codes(
    folder: Place,
    kind: Kind,
    files: Sequence[str],
    file_B: NDArray[np.int32],
    row_B: NDArray[np.int32],
) -> NDArray[Any]:
    """Frames (uint16) or recognition weights (float16), shape [B, L].

    Args:
        folder: of the codes files.
        kind: which array of the files.
        files: names of files.
        file_B: place in ``files`` of the file of each row.
        row_B: row of the array in that file.

    Raises:
        UserError: a file is missing or damaged.
    """
    order = np.argsort(file_B, kind="stable")
    used, starts = np.unique(file_B[order], return_index=True)
    groups = np.split(order, starts[1:]) if len(used) else []
    found = [
        _open(_path(folder, files[file])).rows(kind, row_B[group])
        for file, group in zip(used, groups, strict=True)
    ]
    if len(found) == 1:
        return found[0]
    values = np.empty((len(row_B), found[0].shape[1] if found else 0), _DTYPES[kind])
    for group, rows in zip(groups, found, strict=True):
        values[group] = rows
    return values


class _CodesFile:
    """An open codes file."""

    def __init__(self, path: Place) -> None:
        try:
            self._descriptor = os.open(local_copy(path), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise UserError(f"{path} is missing; restore it from a copy of the run") from error
        length = int.from_bytes(os.pread(self._descriptor, 8, 0), "little")
        header = json.loads(os.pread(self._descriptor, length, 8))
        self._arrays = {
            kind: (8 + length + header[kind]["data_offsets"][0], header[kind]["shape"][1])
            for kind in _DTYPES
        }

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def rows(self, kind: Kind, rows: NDArray[np.int32]) -> NDArray[Any]:
        """The rows of an array, [B, L]."""
        first, last = int(rows.min()), int(rows.max())
        if last - first <= _SPARSE * len(rows):
            return self._span(kind, first, last + 1)[rows - first]
        return np.concatenate([self._span(kind, row, row + 1) for row in rows.tolist()])

    def _span(self, kind: Kind, first: int, stop: int) -> NDArray[Any]:
        start, width = self._arrays[kind]
        size = width * _DTYPES[kind].itemsize
        payload = os.pread(self._descriptor, (stop - first) * size, start + first * size)
        return np.frombuffer(payload, _DTYPES[kind]).reshape(-1, width)


@lru_cache(_OPEN_FILES)
def _open(path: Place) -> _CodesFile:
    if path not in _checked and path.exists():
        if sha256_file(local_copy(path)) != path.stem:
            raise UserError(f"{path} is damaged or was changed; restore it from a copy of the run")
        _checked.add(path)
    return _CodesFile(path)


def _path(folder: Place, digest: str) -> Place:
    return folder / f"{digest}.safetensors"
