"""MLflow, written by the driver only: a parent run for the bootstrap, a child run per round.

While a round goes on a thread writes what is new every 10 seconds: the points of the training logs,
how far the stage is, the load of this machine. When the round is finished, its results follow.

Everything goes into the outbox (`ray_jobs.outbox`) first. ``tracking.json`` has how much of that
MLflow took, and the address of the run's page; the rest is sent again and again, and by the next
command. A dead tracking server costs a warning, never the loop.
"""

import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple
from importlib.metadata import version
from types import TracebackType
from typing import Any, Self

from dynamics.core.config import INSTALLED, REPOSITORY_ROOT, LoopConfig
from dynamics.core.progress import NO_DETAIL, Detail, Pace
from dynamics.core.records import RoundReport
from dynamics.storage.run_folder import RunFolder, read_json, write_json
from ray_jobs.mlflow_runs import MlflowRuns
from ray_jobs.outbox import Outbox, Point, now

WRITE_EVERY_S = 10.0
_RETRY_AFTER_S = 60.0
_LOAD_SAMPLES = 3
"""Samples of this machine's load that make a point."""


class MlflowTracker:
    """A `Tracker` and a `Progress` (`dynamics.pipeline.tracking`); imports mlflow at the first use.

    As a context: when the body is interrupted or fails the runs end as killed or failed, and what
    MLflow did not take yet is sent once more.

    Args:
        cfg: the run's config; ``track.uri`` names the server, else ``MLFLOW_TRACKING_URI`` does.
        folder: the run.
        warn: called with one line when the server does not answer.

    Attributes:
        address: the run's page behind the server's own address; empty before anything was sent.
    """

    def __init__(self, cfg: LoopConfig, folder: RunFolder, warn: Callable[[str], None]) -> None:
        self.cfg, self.folder, self._warn = cfg, folder, warn
        self._server = cfg.track.server
        self._uri = self._server or f"sqlite:///{folder.mlflow}"
        self._outbox = Outbox(folder.outbox)
        self._cursor = folder.tracking / "tracking.json"
        self._sent, self.address = self._last_sent()
        self._verdicts = {  # of the rounds whose results are in the outbox
            entry["round"]: entry["verdict"]
            for entry in self._outbox.entries()
            if "verdict" in entry
        }
        self._runs: MlflowRuns | None = None
        self._warned = self._ended = False
        self._round: int | None = None
        self._pace = Pace()
        self._queued = 0
        self._told = (0, "")
        self._monitors: list[Any] = []
        self._num_samples = 0
        self._one_writes = threading.RLock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        if kind is not None and self._thread is not None and not self._ended:
            self._end("KILLED" if issubclass(kind, KeyboardInterrupt) else "FAILED")
        if self._sent < len(self._outbox) and not self._warned:
            self.write()
        if self._thread is not None:  # what is left is for the same command, not for this thread
            self._ended = True
            self._wake.set()
            self._thread.join(timeout=2)

    def __call__(self, done: int, total: int, what: str, detail: Detail = NO_DETAIL) -> None:
        """Keep how far a stage is, for the next time that points are written."""
        if self._pace.advance(done, total, what):
            self._told = (done, what)
        self._queued = detail.queued
        self._begin()

    def begin_round(self, round_id: int) -> None:
        """Open the round's child run, now or when the server answers."""
        self._begin()
        self._outbox.add("begin", round_id, config=self.cfg.model_dump(mode="json"))
        self._round = round_id
        self._wake.set()

    def log_round(self, report: RoundReport) -> None:
        """Write a finished round as a child run, once.

        A written round stays as it is, unless a guard was overridden since.
        """
        round_id, verdict = report.round_id, promotion(report)
        self._begin()
        if round_id not in self._verdicts:
            self._add_results(report)
        elif self._verdicts[round_id] != verdict:
            self._outbox.add("promotion", round_id, verdict=verdict)
        self._verdicts[round_id] = verdict
        self._wake.set()

    def log_run(self, reports: Sequence[RoundReport]) -> None:
        """Write the rounds that are missing and the page, and close the parent."""
        for report in reports:
            self.log_round(report)
        self._end("FINISHED")
        self.write()

    def write(self) -> None:
        """Put what is new into the outbox, and send what MLflow has not taken."""
        with self._one_writes, self._surviving():
            if not self._ended:
                self._collect()
            runs = self._connected()
            while self._sent < len(self._outbox):
                batch = self._outbox.batch(self._sent)
                runs.send(batch)
                self._sent, self.address = self._sent + len(batch), runs.address
                cursor = {"sent": self._sent, "uri": self._server, "page": self.address}
                write_json(self._cursor, cursor)

    def _begin(self) -> None:
        """Name the run, and start the thread that writes; once."""
        if self._thread is None:
            tags = {"config_digest": self.folder.digest, "git_revision": git_revision()}
            self._outbox.start(config=self.cfg.model_dump(mode="json"), tags=tags)
            self._thread = threading.Thread(target=self._write_again_and_again, daemon=True)
            self._thread.start()

    def _end(self, status: str) -> None:
        self._ended = True
        self._outbox.add("end", self._round, status=status)

    def _write_again_and_again(self) -> None:
        while not self._ended:
            self._wake.wait(_RETRY_AFTER_S if self._warned else WRITE_EVERY_S)
            self._wake.clear()
            self.write()

    def _connected(self) -> MlflowRuns:
        if self._runs is None:
            start = next(self._outbox.entries())
            self._runs = MlflowRuns(self.folder, start, self._server, self.cfg.track.experiment)
            if not self._runs.has_parent:
                self._sent = 0
        return self._runs

    def _last_sent(self) -> tuple[int, str]:
        """Entries that the server, or the database, is known to have; the run's page there."""
        lost = self._server is None and not self.folder.mlflow.exists()
        if lost or not self._cursor.exists():
            return 0, ""
        found = read_json(self._cursor)
        if found["uri"] != self._server:
            return 0, ""
        return int(found.get("sent", 0)), str(found.get("page", ""))

    def _collect(self) -> None:
        round_id = self._round
        if round_id is not None:
            self._outbox.add_points(round_id, self._training_points(round_id))
            self._outbox.add_points(round_id, self._load_points(round_id))
        self._outbox.add_points(round_id, list(self._stage_points()))

    def _stage_points(self) -> Iterator[Point]:
        """Points of the stage that goes on, when it advanced."""
        pace = self._pace
        if not pace.total or (pace.done, pace.what) == self._told:
            return
        self._told = (pace.done, pace.what)
        stage = pace.what.partition(", round")[0].replace(" ", "_")
        found = {"done": pace.done, "per_s": pace.per_s, "queued": self._queued}
        if pace.eta_s is not None:
            found["eta_s"] = pace.eta_s
        for name, value in found.items():
            yield Point(f"stage/{stage}_{name}", float(value), now(), pace.done)

    def _training_points(self, round_id: int) -> Iterator[Point]:
        """Points of the training logs after the last step that the outbox has."""
        for task in ("idm", "fdp"):
            curve = f"train/{task}_loss_curve"
            last = self._outbox.last(round_id, curve)
            for line in self.folder.training_log(round_id, task).lines():
                step = int(line["step"])
                if step > last:
                    # Logs of older versions have no times.
                    at = int(1000 * line.get("time", time.time()))
                    yield Point(curve, line["loss"], at, step)
                    for name in line.keys() - {"step", "steps", "loss", "time"}:
                        yield Point(f"train/{task}_{name}", line[name], at, step)

    def _load_points(self, round_id: int) -> Iterator[Point]:
        """Load of this machine, the mean of a few samples; MLflow knows how to measure it."""
        monitors = self._monitors = self._monitors or _monitors()
        for monitor in monitors:
            monitor.collect_metrics()
        self._num_samples += 1
        if self._num_samples % _LOAD_SAMPLES:
            return
        for monitor in monitors:
            for name, value in monitor.aggregate_metrics().items():
                step = self._outbox.last(round_id, f"system/{name}") + 1
                yield Point(f"system/{name}", float(value), now(), step)
            monitor.clear_metrics()

    def _add_results(self, report: RoundReport) -> None:
        round_id, self._round = report.round_id, None
        seconds = self.folder.timings(round_id)
        if not any(e["kind"] == "begin" and e["round"] == round_id for e in self._outbox.entries()):
            # A round of an older version, which had no outbox.
            began = now() - int(1000 * sum(seconds.values()))
            config = self.cfg.model_dump(mode="json")
            self._outbox.add("begin", round_id, began, config=config)
        self._outbox.add_points(round_id, self._training_points(round_id))
        self._outbox.add(
            "results",
            round_id,
            values=round_metrics(report, seconds),
            intervals=[[name, *astuple(estimate)] for name, estimate in report.metrics.items()],
            models=report.models,
            verdict=promotion(report),
        )

    @contextmanager
    def _surviving(self) -> Iterator[None]:
        """Turn exceptions into a warning, one until it works again: the run matters more."""
        try:
            yield
            self._warned = False
        except Exception as error:  # HTTP, SQL or JSON errors of a broken server
            self._runs = None  # the next one looks again what is there
            if self._warned:
                return
            self._warned = True
            reason = " ".join(str(error).split())[:300]
            self._warn(
                f"warning: MLflow at {self._uri} did not take all of {self.folder.outbox} "
                f"({reason}); the loop goes on, the same command again sends what is missing"
            )


def _monitors() -> list[Any]:
    """MLflow's measures of this machine, which have no types."""
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    kinds: list[Any] = [CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor]
    monitors = []
    for kind in kinds:
        with suppress(Exception):  # the last one: without NVIDIA's driver or its Python package
            monitors.append(kind())
    return monitors


def round_metrics(report: RoundReport, timings: dict[str, float]) -> dict[str, float]:
    """Flat metrics of a round: estimates, counts, losses, seconds."""
    values = {name: estimate.value for name, estimate in report.metrics.items()}
    values["label/labelled"] = float(report.num_labelled)
    values["label/accepted"] = float(report.num_accepted)
    values |= {f"filter/{reason}": float(count) for reason, count in report.reasons.items()}
    values |= {f"train/{name}": value for name, value in report.train.items()}
    values |= {f"guard/{result.name}": result.value for result in report.guards}
    return values | {f"seconds/{stage}": value for stage, value in timings.items()}


def promotion(report: RoundReport) -> str:
    """The round's tag: ``promoted``, ``blocked: copy_rate`` or ``accepted: copy_rate``."""
    if report.blocked_by:
        return "blocked: " + ", ".join(result.name for result in report.blocked_by)
    if report.accepted_guards:
        return "accepted: " + ", ".join(report.accepted_guards)
    return "promoted"


def git_revision() -> str:
    """Commit of the checkout, with ``-dirty`` when files differ; of an installation its version."""
    if INSTALLED:
        return f"dynamics-bootstrap {version('dynamics-bootstrap')}"
    command = ["git", "-C", str(REPOSITORY_ROOT), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.stdout.strip()
