"""The run as metrics of Ray: one scrape of the nodes' endpoint has them beside Ray's own.

Prometheus sees each with Ray's prefix, e.g. ``ray_dynamics_stage_done{run, round, stage}``. Ray
forgets a value that is not set again, so a thread sets all of them every 5 seconds: the series of a
stage ends with the stage.
"""

import threading
from collections.abc import Sequence
from functools import cache

from ray.util.metrics import Gauge

from dynamics.core.progress import NO_DETAIL, Detail, Pace
from dynamics.core.records import RoundReport
from dynamics.storage.run_folder import RunFolder
from ray_jobs import runtime

SET_EVERY_S = 5.0

NAMES = {
    "round": "The round that is worked on",
    "stage_done": "Pairs, steps or files of the stage that are finished",
    "stage_total": "Pairs, steps or files of the stage",
    "stage_per_second": "Finished by second, averaged over the stage",
    "stage_eta_seconds": "Seconds until the stage is finished, 0 while nobody knows",
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
        self._results: dict[str, float] = {}
        self._pace = Pace()
        self._queued = 0
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __call__(self, done: int, total: int, what: str, detail: Detail = NO_DETAIL) -> None:
        """Keep how far a stage is."""
        self._pace.advance(done, total, what)
        self._queued = detail.queued
        if self._thread is None:
            self._thread = threading.Thread(target=self._set_again, daemon=True)
            self._thread.start()

    def begin_round(self, round_id: int) -> None:
        """Keep the round."""
        self._round = round_id

    def log_round(self, report: RoundReport) -> None:
        """Keep the round's results."""
        self._results = {name: estimate.value for name, estimate in report.metrics.items()}

    def log_run(self, reports: Sequence[RoundReport]) -> None:
        """Set nothing any more."""
        self._ended.set()

    def _set_again(self) -> None:
        while not self._ended.wait(SET_EVERY_S):
            if runtime.ray_is_up():
                self.set_all()

    def set_all(self) -> None:
        """Set the gauges of the round, of the stage, and of the fits that go on."""
        for name, value in self._results.items():
            _gauge("result").set(value, {"run": self._run, "metric": name})
        if self._round is not None:
            _gauge("round").set(self._round, {"run": self._run})
        pace = self._pace
        self._set_stage(
            done=pace.done,
            total=pace.total,
            per_second=pace.per_s,
            eta_seconds=pace.eta_s or 0.0,
            queued=self._queued,
        )
        if self._round is not None and pace.what.startswith("train"):
            self._set_fits(self._round)

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
