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
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from dynamics.core.errors import UserError
from dynamics.core.places import Place
from dynamics.storage.files import create_bytes, local_copy

Kind = Literal["frames", "recognition"]

_DTYPES: dict[Kind, np.dtype[Any]] = {
    "frames": np.dtype(np.uint16),
    "recognition": np.dtype(np.float16),
}
_OPEN_FILES = 256
_SPARSE = 4
"""Rows are read one by one when the span from the first to the last is longer by this factor."""
_checked: dict[tuple[Place, str], "_Layout"] = {}


def write_codes(
    folder: Place, frames_FL: NDArray[np.uint16], recognition_PL: NDArray[np.float16]
) -> str:
    """Write a codes file durably; returns its name, the sha256 of its bytes."""
    arrays: dict[Kind, NDArray[Any]] = {"frames": frames_FL, "recognition": recognition_PL}
    payload = safetensors.numpy.save(
        {name: np.ascontiguousarray(values, _DTYPES[name]) for name, values in arrays.items()}
    )
    digest = hashlib.sha256(payload).hexdigest()
    create_bytes(codes_path(folder, digest), payload)
    return digest


class CodesFolder:
    """Rows of codes files.

    Args:
        folder: of the codes files.
        files: names of those that are read, told apart by their place here.
    """

    def __init__(self, folder: Place, files: Sequence[str]) -> None:
        self._folder, self._files = folder, files

    def read(self, kind: Kind, file_B: NDArray[np.int32], row_B: NDArray[np.int32]) -> NDArray[Any]:
        """Frames (uint16) or recognition weights (float16), [B, L]: a row of a file each.

        Raises:
            UserError: a file is missing or damaged.
        """
        order = np.argsort(file_B, kind="stable")
        used, starts = np.unique(file_B[order], return_index=True)
        groups = np.split(order, starts[1:]) if len(used) else []
        found = [
            _open(self._folder, self._files[file]).rows(kind, row_B[group])
            for file, group in zip(used.tolist(), groups, strict=True)
        ]
        if len(found) == 1:
            return found[0]
        if found and (np.diff(file_B) >= 0).all():
            return np.concatenate(found)
        values = np.empty((len(row_B), found[0].shape[1] if found else 0), _DTYPES[kind])
        for group, rows in zip(groups, found, strict=True):
            values[group] = rows
        return values


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where the arrays of a checked file begin, and L."""

    path: str
    begins: dict[Kind, int]
    num_codes: int


class _CodesFile:
    """An open codes file."""

    def __init__(self, layout: _Layout) -> None:
        self._layout = layout
        self._descriptor = os.open(layout.path, os.O_RDONLY | os.O_CLOEXEC)

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
        size = self._layout.num_codes * _DTYPES[kind].itemsize
        begin = self._layout.begins[kind] + first * size
        payload = os.pread(self._descriptor, (stop - first) * size, begin)
        return np.frombuffer(payload, _DTYPES[kind]).reshape(stop - first, -1)


@lru_cache(_OPEN_FILES)
def _open(folder: Place, digest: str) -> _CodesFile:
    key = folder, digest
    if key not in _checked:
        _checked[key] = _check(codes_path(folder, digest))
    return _CodesFile(_checked[key])


def _check(place: Place) -> _Layout:
    try:
        path = local_copy(place)
        payload = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{place} is missing; restore it from a copy of the run") from error
    if hashlib.sha256(payload).hexdigest() != place.stem:
        raise UserError(f"{place} is damaged or was changed; restore it from a copy of the run")
    length = int.from_bytes(payload[:8], "little")
    header = json.loads(payload[8 : 8 + length])
    begins = {kind: 8 + length + header[kind]["data_offsets"][0] for kind in _DTYPES}
    return _Layout(str(path), begins, header["frames"]["shape"][1])


def codes_path(folder: Place, digest: str) -> Place:
    """The codes file with a digest."""
    return folder / f"{digest}.safetensors"
