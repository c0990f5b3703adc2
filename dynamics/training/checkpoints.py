"""Output of a fit: resumable states while it runs, the adapter folder at its end.

    00000400-<sha256>.safetensors   after step 400: weights, optimizer state, recent losses

A file's name holds the sha256 of its bytes. A file that was torn or damaged after it was written is
found by that, and the fit goes on from the generation before it.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dynamics.core.places import Place, matching
from dynamics.models.checkpoint import adapter_digest
from dynamics.storage.files import (
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
from dynamics.training.sharding import whole
from dynamics.training.trainable import trainable_parameters

_PROGRESS, _DONE = "progress", "fit.json"


class Checkpoints:
    """The checkpoints of one fit; one process saves, any number may load.

    Args:
        folder: Holds nothing else; made at the first `save`.
    """

    def __init__(self, folder: Place) -> None:
        self._folder = folder
        self._newest: Place | None = None  # known to be sound: loaded or written here

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and progress of the newest sound checkpoint, None without one.

        Damaged ones are passed over without a word: the steps since the one before are repeated,
        all of them when no other is left, and give the same weights.
        """
        for path in reversed(matching(self._folder, "*.safetensors")):
            with fetched(path) as file:
                if path.stem.endswith(sha256_file(file)):
                    self._newest = path
                    with safe_open(file, "pt") as opened:
                        progress = json.loads(opened.metadata()[_PROGRESS])
                    return load_file(file), progress
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
        with local_scratch(self._folder) as scratch:
            fresh = scratch / "fresh.tmp"
            save_file(tensors, fresh, {_PROGRESS: json.dumps(progress)})
            path = self._folder / f"{step:08d}-{sha256_file(fresh)}.safetensors"
            name_flushed(fresh, path)
        self._newest = path


@dataclass(frozen=True, slots=True, kw_only=True)
class FitResult:
    """A finished adapter."""

    adapter: Place
    digest: str
    steps: int
    loss: float
    """Mean over the last REPORT_EVERY steps, nats per scored token."""


def finished_fit(job: FitJob) -> FitResult | None:
    """The result of a complete fit, None while it is not complete."""
    done = job.out / _DONE
    return fit_result(job, json.loads(done.read_text())) if done.is_file() else None


def state_tensors(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The tensors of a checkpoint, by name; all workers call this, since shards are gathered."""
    tensors: dict[str, Tensor] = {}
    for index, (name, parameter) in enumerate(trainable_parameters(network).items()):
        tensors[f"parameter/{name}"] = whole(parameter.detach()).contiguous()
        for key, value in optimizer.state_dict()["state"].get(index, {}).items():
            tensors[f"optimizer/{name}/{key}"] = whole(torch.as_tensor(value)).contiguous()
    return tensors


def resume(
    checkpoints: Checkpoints, network: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[int, list[float]]:
    """Load the newest sound checkpoint, if any: (steps done, recent losses)."""
    if (found := checkpoints.load()) is None:
        return 0, []
    tensors, progress = found
    moments: dict[int, dict[str, Tensor]] = {}
    with torch.no_grad():
        for index, (name, parameter) in enumerate(trainable_parameters(network).items()):
            parameter.copy_(tensors[f"parameter/{name}"])
            prefix = f"optimizer/{name}/"
            moments[index] = {
                k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)
            }
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    return int(progress["step"]), [float(loss) for loss in progress["recent"]]


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
