"""Output of a fit: resumable states while it runs, the adapter folder at its end.

    00000400-0of2-<sha256>.safetensors   after step 400: weights, optimizer state, recent losses
    00000400-1of2-<sha256>.safetensors

The files of a step are a generation. Worker 0 writes what it holds whole, and of tensors that are
split over the workers each writes its rows; where nothing is split there is one file, 0of1. Any
number of workers can read a generation, since each takes the rows that it needs.

A file's name holds the sha256 of its bytes. A generation of which a file is missing, was torn or
damaged is found by that, and the fit goes on from the generation before it.
"""

import json
import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dynamics.core.places import Place, matching
from dynamics.storage.files import (
    adapter_digest,
    damaged_files,
    fetched,
    local_copy,
    local_scratch,
    make_folder,
    name_flushed,
    new_folder,
    remove_tree,
    sha256_file,
)
from dynamics.training.batches import FitJob
from dynamics.training.trainable import trainable_parameters

# One entry: safetensors writes several in any order, and equal states must have equal bytes.
_ABOUT, _DONE = "about", "fit.json"
_FILE = re.compile(r"(\d+)-(\d+)of(\d+)-([0-9a-f]{64})\.safetensors")


class Part(NamedTuple):
    """What a worker holds of a tensor."""

    tensor: Tensor
    start: int | None = None
    """Its first row in the whole tensor, of one that is split over the workers; None = whole."""


class Saved:
    """A sound generation."""

    def __init__(self, files: list[Path]) -> None:
        self._files: list[Any] = [safe_open(file, "pt") for file in files]
        about = [json.loads(file.metadata()[_ABOUT]) for file in self._files]
        self._starts = [one["starts"] for one in about]
        self._names = [set(file.keys()) for file in self._files]
        self.progress: dict[str, Any] = about[0]["progress"]

    def below(self, prefix: str) -> list[str]:
        """What follows the prefix in the names of tensors that begin with it."""
        names = sorted(set().union(*self._names))
        return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows [start, stop) of a tensor, all by default; a number has no rows."""
        found: list[Tensor] = []
        for file, names, starts in zip(self._files, self._names, self._starts, strict=True):
            if name not in names:
                continue
            rows = file.get_slice(name)
            if not rows.get_shape():
                whole: Tensor = file.get_tensor(name)
                return whole
            first, count = starts.get(name, 0), rows.get_shape()[0]
            low = min(max(start - first, 0), count)
            high = count if stop is None else min(max(stop - first, low), count)
            found.append(rows[low:high])
        return torch.cat(found) if len(found) > 1 else found[0]


class Checkpoints:
    """The checkpoints of one fit, of which all of its workers have one.

    Args:
        folder: Holds nothing else; made at the first `save`.
        rank: Number of this worker.
        world_size: Number of workers.
        agree: Gives every worker the value of worker 0; all workers call it.
    """

    def __init__(
        self,
        folder: Place,
        rank: int = 0,
        world_size: int = 1,
        agree: Callable[[int], int] = lambda value: value,
    ) -> None:
        self._folder, self._rank, self._world_size, self._agree = folder, rank, world_size, agree
        self._newest: tuple[int, int] | None = None  # known to be sound: loaded or written here

    @contextmanager
    def newest(self) -> Iterator[Saved | None]:
        """The newest sound generation while the body runs, None without one; all workers call this.

        Damaged ones are passed over without a word: the steps since the one before are repeated,
        all of them when no other is left, and give the same weights.

        Raises:
            RuntimeError: this worker does not see what worker 0 does.
        """
        with ExitStack() as stack:
            files = self._sound(stack)
            mine = self._newest[0] if self._newest else 0
            if (step := self._agree(mine)) != mine:
                files = self._sound(stack, step) if step else None
                if step and files is None:
                    raise RuntimeError(f"no sound checkpoint of step {step} is in {self._folder}")
            yield Saved(files) if files else None

    def _sound(self, stack: ExitStack, wanted: int | None = None) -> list[Path] | None:
        """Files of the newest sound generation, or of that of a step."""
        generations: dict[tuple[int, int], dict[int, Place]] = defaultdict(dict)
        for path in matching(self._folder, "*.safetensors"):
            if name := _FILE.fullmatch(path.name):
                step, rank, world_size = (int(number) for number in name.groups()[:3])
                generations[step, world_size][rank] = path
        self._newest = None
        for key, paths in sorted(generations.items(), reverse=True):
            if len(paths) != key[1] or wanted not in (None, key[0]):
                continue
            with ExitStack() as here:
                files = [here.enter_context(fetched(paths[rank])) for rank in sorted(paths)]
                if all(
                    paths[rank].stem.endswith(sha256_file(file)) for rank, file in enumerate(files)
                ):
                    self._newest = key
                    stack.push(here.pop_all())
                    return files
        return None

    def save(self, parts: Mapping[str, Part], step: int, progress: dict[str, Any]) -> None:
        """Write a generation in place of all but the newest sound one; all workers call this.

        What this worker writes is durable when it returns.

        Raises:
            OSError: the disk is full; the newest sound generation is still there.
        """
        if self._rank == 0:
            make_folder(self._folder)
            for path in self._folder.iterdir():
                name = _FILE.fullmatch(path.name)
                if not name or (int(name[1]), int(name[3])) != self._newest:
                    path.unlink()
        starts = {name: part.start for name, part in parts.items() if part.start is not None}
        world_size = self._world_size if starts else 1
        if starts:
            self._agree(step)  # worker 0 has cleared
        if self._rank < world_size:
            tensors = {
                name: part.tensor.contiguous()
                for name, part in parts.items()
                if name in starts or self._rank == 0
            }
            about = json.dumps({"progress": progress, "starts": starts})
            with local_scratch(self._folder) as scratch:
                fresh = scratch / f"fresh-{self._rank}.tmp"
                save_file(tensors, fresh, {_ABOUT: about})
                file = f"{step:08d}-{self._rank}of{world_size}-{sha256_file(fresh)}.safetensors"
                name_flushed(fresh, self._folder / file)
        self._newest = step, world_size


@dataclass(frozen=True, slots=True, kw_only=True)
class FitResult:
    """A finished adapter."""

    adapter: Place
    digest: str
    steps: int
    loss: float
    """Mean over the last REPORT_EVERY steps, nats per scored token."""


def finished_fit(job: FitJob) -> FitResult | None:
    """The result of a complete fit, None while it is not complete, or when it was damaged since."""
    done = job.out / _DONE
    if not done.is_file() or damaged_files(job.out):
        return None
    return fit_result(job, json.loads(done.read_text()))


def load_weights(network: nn.Module, saved: Saved) -> None:
    """Set the trained weights, which are whole on every worker before an engine splits them."""
    with torch.no_grad():
        for name, parameter in trainable_parameters(network).items():
            parameter.copy_(saved.read(f"parameter/{name}"))


def publish(job: FitJob, network: Any, weights: dict[str, Tensor] | None, loss: float) -> None:
    """Write the adapter folder at once, ``fit.json`` inside it.

    ``weights`` replaces the network's own where those are sharded.
    """
    record = json.dumps({"loss": loss, "steps": job.steps, "task": job.task}) + "\n"
    with new_folder(job.out, _DONE) as fresh:
        if job.train.method == "full":
            # A whole checkpoint, with the base's tokenizers and prompts: it loads without the base.
            but_weights = shutil.ignore_patterns("model*", "*.npy")
            shutil.copytree(local_copy(job.base), fresh, ignore=but_weights, dirs_exist_ok=True)
            network.save_pretrained(str(fresh), state_dict=weights)
        else:
            network.save_pretrained(str(fresh), save_embedding_layers=False, state_dict=weights)
            (fresh / "README.md").unlink(missing_ok=True)
            _sort_config(fresh / "adapter_config.json")
        (fresh / _DONE).write_text(record)
    remove_tree(job.checkpoint_dir)


def _sort_config(path: Path) -> None:
    """Equal adapters must have equal files: peft writes its sets in an order that varies."""
    config = json.loads(path.read_text())
    config["target_modules"] = sorted(config["target_modules"])
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def fit_result(job: FitJob, record: dict[str, Any]) -> FitResult:
    """The result of a finished fit; ``record`` is its ``fit.json``."""
    digest = adapter_digest(job.base, job.out) if job.out.is_dir() else ""
    return FitResult(
        adapter=job.out, digest=digest, steps=int(record["steps"]), loss=float(record["loss"])
    )
