"""What a running fit has reached, on disk: two generations, so that one of them is always sound.

    00000400-<sha256>.safetensors   after step 400: weights, optimizer state, recent losses

A file's name holds the sha256 of its bytes. A file that was torn or damaged after it was written is
found by that, and the fit goes on from the generation before it.
"""

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from dynamics.ledger.files import make_folder, name_flushed, sha256_file

_PROGRESS = "progress"


class Checkpoints:
    """The checkpoints of one fit; one process saves, any number may load.

    Args:
        folder: Holds nothing else; made at the first `save`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._newest: Path | None = None  # known to be sound: loaded or written here

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and progress of the newest sound checkpoint, None without one.

        Damaged ones are passed over without a word: the steps since the one before are repeated,
        all of them when no other is left, and give the same weights.
        """
        for path in sorted(self._folder.glob("*.safetensors"), reverse=True):
            if path.stem.endswith(sha256_file(path)):
                self._newest = path
                with safe_open(path, "pt") as file:
                    progress = json.loads(file.metadata()[_PROGRESS])
                return load_file(path), progress
        return None

    def save(self, tensors: dict[str, Tensor], step: int, progress: dict[str, Any]) -> None:
        """Write a checkpoint, durable when it returns, in place of all but the newest sound one.

        Raises:
            OSError: the disk is full; the newest sound checkpoint is still there.
        """
        make_folder(self._folder)
        for path in self._folder.iterdir():
            if path != self._newest:
                path.unlink()
        fresh = self._folder / "fresh.tmp"
        save_file(tensors, fresh, {_PROGRESS: json.dumps(progress)})
        path = self._folder / f"{step:08d}-{sha256_file(fresh)}.safetensors"
        name_flushed(fresh, path)
        self._newest = path
