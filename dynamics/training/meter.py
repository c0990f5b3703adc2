"""Throughput of a fit between two reports, as its training log has it."""

import time

import torch
from torch import Tensor

REPORT_WITHIN_S = 10.0
"""A fit whose steps are slow reports this often, if a step ended."""


class Meter:
    """Counts the batches of a fit, over all of its workers; each worker has one.

    Args:
        device: of the worker's model; a GPU's memory is reported, too.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._restart()

    def _restart(self) -> None:
        self._since = time.monotonic()
        self._steps = self._pairs = self._tokens = 0

    def count(self, ids_BT: Tensor) -> None:
        """Count the rows and positions of a step's batch."""
        self._steps += 1
        self._pairs += len(ids_BT)
        self._tokens += ids_BT.numel()

    @property
    def is_due(self) -> bool:
        """True when the last report is `REPORT_WITHIN_S` ago."""
        return time.monotonic() - self._since >= REPORT_WITHIN_S

    def figures(self) -> dict[str, float]:
        """Figures since the last call.

        ``time`` (seconds since 1970), ``step_s``, ``pairs_per_s``, ``tokens_per_s``, on a GPU
        ``gpu_gib``, the most memory that tensors of this worker took.
        """
        seconds = max(time.monotonic() - self._since, 1e-6)
        found = {
            "time": time.time(),
            "step_s": seconds / max(self._steps, 1),
            "pairs_per_s": self._pairs / seconds,
            "tokens_per_s": self._tokens / seconds,
        }
        if self.device.type == "cuda":
            found["gpu_gib"] = torch.cuda.max_memory_allocated(self.device) / 2**30
            torch.cuda.reset_peak_memory_stats(self.device)
        self._restart()
        return found
