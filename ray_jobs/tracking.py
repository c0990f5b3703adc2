"""MLflow, written by the driver only: a parent run for the bootstrap, a child run per round.

While a round goes on a thread writes what is new every 10 seconds: the points of the training logs,
how far the stage is, the load of this machine. When the round is finished, its results follow.

Run ids are stored in the run folder (``tracking.json``), so that a resumed bootstrap continues its
runs. A point has the time of what it tells, so that writing it again changes nothing: MLflow keeps
one of equal points. A dead tracking server costs a warning, never the loop: the next round, or the
same command again, writes what is missing.
"""

import json
import os
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

from dynamics.core.config import REPOSITORY_ROOT, LoopConfig
from dynamics.core.progress import Pace
from dynamics.core.records import RoundReport
from dynamics.storage.files import local_copy
from dynamics.storage.run_folder import RunFolder, flatten, read_json, write_json

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

WRITE_EVERY_S = 10.0
_RETRY_AFTER_S = 60.0
_SYSTEM_SAMPLES = 3
"""Samples of this machine's load, 10 s apart, that make a point."""
_MAX_METRICS_A_CALL = 1000
_MAX_PARAMS_A_CALL = 100
_MAX_VALUE = 500


class MlflowTracker:
    """A `Tracker` and a `Progress` (`dynamics.pipeline.tracking`); imports mlflow at the first use.

    Args:
        cfg: the run's config; ``track.uri`` names the server, else ``MLFLOW_TRACKING_URI`` does.
        folder: the run.
        warn: called with one line when the server does not answer.
    """

    def __init__(self, cfg: LoopConfig, folder: RunFolder, warn: Callable[[str], None]) -> None:
        self.cfg = cfg
        self.folder = folder
        self.server = server_uri(cfg)
        self.uri = self.server or f"sqlite:///{folder.mlflow}"
        self._warn = warn
        # A server's run ids go on from any machine, those of the default database only beside it.
        self._path = (folder.root if self.server else folder.tracking) / "tracking.json"
        self._artifacts = (folder.tracking / "mlartifacts").as_uri()
        self._connected: MlflowClient | None = None
        self._warned = self._ended = False
        self._round: int | None = None
        self._running: set[str] = set()
        self._written: dict[tuple[str, str], int] = {}  # last step by run and task
        self._pace = Pace()
        self._queued = 0
        self._told = (0, "")
        self._load: Any = None
        self._one_writes = threading.RLock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def __call__(
        self, done: int, total: int, what: str, *, note: str = "", queued: int = 0
    ) -> None:
        """Keep how far a stage is, for the next time that points are written."""
        if self._pace.advance(done, total, what):
            self._told = (done, what)
        self._queued = queued
        self._start_writing()

    def begin_round(self, round_id: int) -> None:
        """Open the round's child run, now or when the server answers."""
        self._round = round_id
        self._start_writing()
        self._wake.set()

    def log_round(self, report: RoundReport) -> None:
        """Write a finished round as a child run, once.

        A written round stays as it is, unless a guard was overridden since.
        """
        key = str(report.round_id)
        with self._one_writes, self._surviving(f"round {report.round_id}"):
            state = self._state()
            if key not in state["logged"]:
                self._log_round(report)
            elif state["promotion"][key] != promotion(report):
                self._log_promotion(report)

    def log_run(self, reports: Sequence[RoundReport]) -> None:
        """Write the rounds that are missing and the page, and close the parent."""
        for report in reports:
            self.log_round(report)
        with self._one_writes, self._surviving("the run"):
            client, parent = self._client(), self._parent()
            if self.folder.page.exists():
                client.log_artifact(parent, str(local_copy(self.folder.page)))
            client.set_terminated(parent)
            self._running.discard(parent)
        self._ended = True

    def __enter__(self) -> "MlflowTracker":
        """The tracker, which ends its runs should the body fail."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """End what still runs as KILLED, or as FAILED; the same command continues it."""
        if kind is None or self._warned:  # no waiting for a server that is dead
            return
        status = "KILLED" if issubclass(kind, KeyboardInterrupt) else "FAILED"
        with self._one_writes, self._surviving("the end of the command"):
            self._ended = True
            for run in self._running:
                self._client().set_terminated(run, status)

    def _start_writing(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._write_points, daemon=True)
            self._thread.start()

    def _write_points(self) -> None:
        """Write what is new, again and again until the run is written."""
        while not self._ended:
            self._wake.wait(_RETRY_AFTER_S if self._warned else WRITE_EVERY_S)
            self._wake.clear()
            self.write_points()

    def write_points(self) -> None:
        """Write what is new since the last call, to the run of the round, else to the parent."""
        with self._one_writes, self._surviving("points"):
            if self._ended:
                return
            run = parent = self._parent()
            if self._round is not None:
                run = self._child(self._round)
            for one in {parent, run} - self._running:
                self._client().update_run(one, status="RUNNING")
                self._running.add(one)
            points = list(self._stage_points())
            if self._round is not None:
                points += self._training_points(run, self._round)
                self._watch_load(run)
            self._log(run, points)

    def _stage_points(self) -> "Iterator[Metric]":
        """Points of the stage that goes on, when it advanced."""
        from mlflow.entities import Metric

        pace = self._pace
        if not pace.total or (pace.done, pace.what) == self._told:
            return
        self._told = (pace.done, pace.what)
        stage = pace.what.partition(", round")[0].replace(" ", "_")
        found = {"done": pace.done, "per_s": pace.per_s, "queued": self._queued}
        if pace.eta_s is not None:
            found["eta_s"] = pace.eta_s
        now = int(time.time() * 1000)
        for name, value in found.items():
            yield Metric(f"stage/{stage}_{name}", float(value), now, pace.done)

    def _training_points(self, run: str, round_id: int) -> "Iterator[Metric]":
        """Points of the training logs after the last step that the run has."""
        from mlflow.entities import Metric

        for task in ("idm", "fdp"):
            lines = self.folder.training_log(round_id, task).lines()
            curve = f"train/{task}_loss_curve"
            if lines and (run, task) not in self._written:
                known = self._client().get_metric_history(run, curve)
                self._written[run, task] = max((point.step for point in known), default=0)
            for line in lines:
                step = int(line["step"])
                if step > self._written[run, task]:
                    # Logs of older versions have no times.
                    at = int(1000 * line.get("time", time.time()))
                    yield Metric(curve, line["loss"], at, step)
                    for name in line.keys() - {"step", "steps", "loss", "time"}:
                        yield Metric(f"train/{task}_{name}", line[name], at, step)
                    self._written[run, task] = step

    def _watch_load(self, run: str) -> None:
        """Have MLflow write the load of this machine; it gives up when the server fails once."""
        if self._load is None or not self._load._process.is_alive():
            from mlflow.system_metrics import system_metrics_monitor

            monitor: Any = system_metrics_monitor.SystemMetricsMonitor
            self._load = monitor(
                run,
                samples_before_logging=_SYSTEM_SAMPLES,
                resume_logging=True,
                tracking_uri=self.uri,
            )
            self._load.start()

    def _log(self, run: str, points: "Sequence[Metric]") -> None:
        for start in range(0, len(points), _MAX_METRICS_A_CALL):
            self._client().log_batch(run, points[start : start + _MAX_METRICS_A_CALL])

    def _log_round(self, report: RoundReport) -> None:
        from mlflow.entities import Metric, RunTag

        step, self._round = report.round_id, None
        if self._load is not None:
            self._load.finish()
            self._load = None
        client, parent = self._client(), self._parent()
        run, state = self._child(step), self._state()
        ended = state["ended"].setdefault(str(step), int(time.time() * 1000))
        write_json(self._path, state)
        values = round_metrics(report, self.folder.timings(step))
        metrics = [Metric(name, value, ended, step) for name, value in values.items()]
        tags = [RunTag(f"models.{k}", v) for k, v in report.models.items()]
        client.log_batch(run, tags=tags)
        self._log(run, [*self._training_points(run, step), *metrics])
        self._log(parent, metrics)  # one curve through the rounds
        self._log_intervals(run, report)
        for path in (self.folder.timings_path(step), self.folder.grid(step)):
            if path.exists():
                client.log_artifact(run, str(local_copy(path)))
        if self.folder.page.exists():
            client.log_artifact(parent, str(local_copy(self.folder.page)))
        self._log_promotion(report)
        client.set_terminated(run, end_time=ended)
        self._running.discard(run)
        state = self._state()
        state["logged"].append(str(step))
        write_json(self._path, state)

    def _log_intervals(self, run: str, report: RoundReport) -> None:
        """Write the round's estimates with their intervals as a table, out of the charts."""
        rows = [[name, *astuple(estimate)] for name, estimate in report.metrics.items()]
        table = {"columns": ["metric", "value", "low", "high", "num_items"], "data": rows}
        self._client().log_dict(run, table, "intervals.json")
        shown = json.dumps([{"path": "intervals.json", "type": "table"}])
        self._client().set_tag(run, "mlflow.loggedArtifacts", shown)

    def _log_promotion(self, report: RoundReport) -> None:
        """Write the parts that a later command may change: the verdict and its report."""
        client, run = self._client(), self._child(report.round_id)
        client.set_tag(run, "promotion", promotion(report))
        report_file = local_copy(self.folder.report_path(report.round_id))
        client.log_artifact(run, str(report_file))
        state = self._state()
        state["promotion"][str(report.round_id)] = promotion(report)
        write_json(self._path, state)

    def _parent(self) -> str:
        """The bootstrap's run id, created at the first call ever for this run folder."""
        state = self._state()
        if state["parent"] is None:
            client = self._client()
            tags = self._tags() | {"kind": "bootstrap"}
            run = client.create_run(self._experiment(), run_name=self.cfg.name, tags=tags)
            state["parent"] = run.info.run_id
            write_json(self._path, state)
            self._log_params(client, run.info.run_id)
            client.log_dict(run.info.run_id, self.cfg.model_dump(mode="json"), "config.json")
        return str(state["parent"])

    def _child(self, round_id: int) -> str:
        state, key = self._state(), str(round_id)
        if key not in state["rounds"]:
            tags = self._tags() | {
                "kind": "round",
                "round": key,
                "mlflow.parentRunId": self._parent(),
            }
            name = f"{self.cfg.name}-round-{round_id:02d}"
            # What could not be written when it began, or before a kill, began as long ago.
            began = time.time() - sum(self.folder.timings(round_id).values())
            client = self._client()
            run = client.create_run(self._experiment(), int(1000 * began), tags, name)
            state = self._state()
            state["rounds"][key] = run.info.run_id
            write_json(self._path, state)
            self._log_params(client, run.info.run_id)
        return str(state["rounds"][key])

    def _experiment(self) -> str:
        client, name = self._client(), self.cfg.track.experiment
        found = client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        # With the default database the artifacts lie beside it; a server knows its own place.
        place = None if self.server else self._artifacts
        return str(client.create_experiment(name, artifact_location=place))

    def _log_params(self, client: "MlflowClient", run: str) -> None:
        from mlflow.entities import Param

        flat = flatten(self.cfg.model_dump(mode="json"))
        params = [Param(key, str(value)[:_MAX_VALUE]) for key, value in sorted(flat.items())]
        for start in range(0, len(params), _MAX_PARAMS_A_CALL):
            client.log_batch(run, params=params[start : start + _MAX_PARAMS_A_CALL])

    def _tags(self) -> dict[str, str]:
        return {"config_digest": self.folder.digest, "git_revision": git_revision()}

    def _client(self) -> "MlflowClient":
        if self._connected is None:
            from mlflow import MlflowClient

            self._connected = MlflowClient(tracking_uri=self.uri)
            if not self.server:
                self._follow_move(self._connected)
        return self._connected

    def _follow_move(self, client: "MlflowClient") -> None:
        """Update the run folder's path in its database, which names artifacts absolutely."""
        found = client.get_experiment_by_name(self.cfg.track.experiment)
        if found is None or found.artifact_location == self._artifacts:
            return
        places = (found.artifact_location, self._artifacts)
        with closing(sqlite3.connect(self.folder.mlflow)) as database, database:
            database.execute(
                "UPDATE experiments SET artifact_location = replace(artifact_location, ?, ?)",
                places,
            )
            database.execute("UPDATE runs SET artifact_uri = replace(artifact_uri, ?, ?)", places)

    def _state(self) -> dict[str, Any]:
        if self._path.exists():
            state = read_json(self._path)
            if state["uri"] == self.server:
                return {"ended": {}, **state}
        return {
            "uri": self.server,
            "parent": None,
            "rounds": {},
            "promotion": {},
            "logged": [],
            "ended": {},
        }

    @contextmanager
    def _surviving(self, what: str) -> Iterator[None]:
        """Turn exceptions into a warning, one until it works again: the run matters more."""
        try:
            yield
            self._warned = False
        except Exception as error:  # HTTP, SQL or JSON errors of a broken server
            self._written.clear()  # the server knows what it took
            if self._warned:
                return
            self._warned = True
            reason = " ".join(str(error).split())[:200]
            self._warn(
                f"warning: MLflow at {self.uri} did not take {what} ({reason}); the loop goes on, "
                "the same command again writes what is missing"
            )


def round_metrics(report: RoundReport, timings: dict[str, float]) -> dict[str, float]:
    """Flat metrics of a round: estimates, counts, losses, seconds."""
    values = {name: estimate.value for name, estimate in report.metrics.items()}
    values["label/labelled"] = float(report.num_labelled)
    values["label/accepted"] = float(report.num_accepted)
    values |= {f"filter/{reason}": float(count) for reason, count in report.reasons.items()}
    values |= {f"train/{name}": value for name, value in report.train.items()}
    values |= {f"guard/{result.name}": result.value for result in report.guards}
    return values | {f"seconds/{stage}": value for stage, value in timings.items()}


def server_uri(cfg: LoopConfig) -> str | None:
    """The tracking server of the config, else of the environment; None = sqlite of the run."""
    return cfg.track.uri or os.environ.get("MLFLOW_TRACKING_URI")


def promotion(report: RoundReport) -> str:
    """The round's tag: ``promoted``, ``blocked: copy_rate`` or ``accepted: copy_rate``."""
    if report.blocked_by:
        return "blocked: " + ", ".join(result.name for result in report.blocked_by)
    if report.accepted_guards:
        return "accepted: " + ", ".join(report.accepted_guards)
    return "promoted"


def git_revision() -> str:
    """Commit of the checkout, with ``-dirty`` when files differ; "unknown" outside of one."""
    command = ["git", "-C", str(REPOSITORY_ROOT), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.stdout.strip()
