"""The run as metrics of Ray: one scrape of the nodes' endpoint has them beside Ray's own.

Prometheus sees each with Ray's prefix, e.g. ``ray_dynamics_stage_done{run, round, stage}``. A
series stays with its last value until the driver ends.
"""

import time
from collections.abc import Sequence
from functools import cache

from ray.util.metrics import Gauge

from dynamics.core.progress import Pace
from dynamics.core.records import RoundReport
from dynamics.storage.run_folder import RunFolder
from ray_jobs import runtime

SET_EVERY_S = 5.0

NAMES = {
    "round": "The round that is worked on",
    "stage_done": "Pairs, steps or files of the stage that are finished",
    "stage_total": "Pairs, steps or files of the stage",
    "stage_per_second": "Finished by second, averaged over the stage; 0 when it is over",
    "stage_eta_seconds": "Seconds until the stage is finished; 0 when it is over",
    "stage_queued": "Items that are read and wait for a worker",
    "fit_step": "Optimizer steps of the fit",
    "fit_loss": "Loss per scored token, mean of the last 25 steps",
    "fit_learning_rate": "Learning rate",
    "fit_step_s": "Seconds a step",
    "fit_pairs_per_s": "Pairs by second, over all workers of the fit",
    "fit_tokens_per_s": "Positions by second, over all workers of the fit",
    "fit_gpu_gib": "Most GPU memory that tensors of a worker took, GiB",
    "result": "A metric of the last finished round on the held-out pairs",
}
"""Metrics by their name without ``dynamics_``, and what each tells."""
_TAGS = {"round": ("run",), "result": ("run", "metric")}


class RayGauges:
    """A `Tracker` and a `Progress` (`dynamics.pipeline.tracking`); silent while no Ray is up."""

    def __init__(self, name: str, folder: RunFolder) -> None:
        self._run = name
        self._folder = folder
        self._round: int | None = None
        self._pace = Pace()
        self._set_at = 0.0

    def __call__(
        self, done: int, total: int, what: str, *, note: str = "", queued: int = 0
    ) -> None:
        """Set the gauges of the stage, and of the fits that go on."""
        if not runtime.ray_is_up():
            return
        if what != self._pace.what and self._pace.what:
            self._set_stage(per_second=0.0, eta_seconds=0.0, queued=0.0)
        begins = self._pace.advance(done, total, what)
        if not begins and done < total and time.monotonic() - self._set_at < SET_EVERY_S:
            return
        self._set_at = time.monotonic()
        self._set_stage(
            done=done,
            total=total,
            per_second=self._pace.per_s,
            eta_seconds=self._pace.eta_s or 0.0,
            queued=queued,
        )
        if self._round is not None and what.startswith("train"):
            self._set_fits(self._round)

    def begin_round(self, round_id: int) -> None:
        """Take note of the round."""
        self._round = round_id
        if runtime.ray_is_up():
            _gauge("round").set(round_id, {"run": self._run})

    def log_round(self, report: RoundReport) -> None:
        """Set the round's results."""
        if runtime.ray_is_up():
            for name, estimate in report.metrics.items():
                _gauge("result").set(estimate.value, {"run": self._run, "metric": name})

    def log_run(self, reports: Sequence[RoundReport]) -> None:
        """Nothing to do: each round is set when it is finished."""

    def _set_stage(self, **values: float) -> None:
        stage = self._pace.what.partition(", round")[0]
        number = "" if self._round is None else str(self._round)
        for name, value in values.items():
            tags = {"run": self._run, "round": number, "stage": stage}
            _gauge(f"stage_{name}").set(value, tags)

    def _set_fits(self, round_id: int) -> None:
        for task in ("idm", "fdp"):
            for line in self._folder.training_log(round_id, task).lines()[-1:]:
                for name in line.keys() & {key.removeprefix("fit_") for key in NAMES}:
                    tags = {"run": self._run, "round": str(round_id), "task": task}
                    _gauge(f"fit_{name}").set(line[name], tags)


@cache
def _gauge(name: str) -> Gauge:
    third = "stage" if name.startswith("stage") else "task"
    tags = _TAGS.get(name, ("run", "round", third))
    return Gauge(f"dynamics_{name}", NAMES[name], tags)
