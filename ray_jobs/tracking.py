"""MLflow, written by the driver only: a parent run for the bootstrap, a child run per round.

Run ids are stored in the run folder (``tracking.json``), so that a resumed bootstrap continues its
runs. A dead tracking server costs a warning, never the loop: the next round, or the same command
again, writes what is missing.
"""

import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

from dynamics.core.config import REPOSITORY_ROOT, LoopConfig
from dynamics.core.records import RoundReport
from dynamics.storage.files import local_copy
from dynamics.storage.run_folder import RunFolder, flatten, read_json, write_json

if TYPE_CHECKING:
    from mlflow import MlflowClient

_MAX_PARAMS_A_CALL = 100
_MAX_VALUE = 500


class MlflowTracker:
    """Implements `dynamics.pipeline.tracking.Tracker`; imports mlflow at the first use."""

    def __init__(self, cfg: LoopConfig, folder: RunFolder, warn: Callable[[str], None]) -> None:
        self.cfg = cfg
        self.folder = folder
        self.uri = cfg.track.uri or f"sqlite:///{folder.mlflow}"
        self._warn = warn
        # A server's run ids go on from any machine, those of the default database only beside it.
        self._path = (folder.root if cfg.track.uri else folder.tracking) / "tracking.json"
        self._artifacts = (folder.tracking / "mlartifacts").as_uri()
        self._connected: MlflowClient | None = None

    def log_round(self, report: RoundReport) -> None:
        """Write a finished round as a child run, once.

        A written round stays as it is, unless a guard was overridden since.
        """
        state, key = self._state(), str(report.round_id)
        with self._surviving(f"round {report.round_id}"):
            if key not in state["logged"]:
                self._log_round(report)
            elif state["promotion"][key] != promotion(report):
                self._log_promotion(report)

    def log_run(self, reports: Sequence[RoundReport]) -> None:
        """Write the rounds that are missing and the page, and close the parent."""
        for report in reports:
            self.log_round(report)
        with self._surviving("the run"):
            client, parent = self._client(), self._parent()
            if self.folder.page.exists():
                client.log_artifact(parent, str(local_copy(self.folder.page)))
            client.set_terminated(parent)

    def _log_round(self, report: RoundReport) -> None:
        from mlflow.entities import Metric, RunTag

        client, parent = self._client(), self._parent()
        run = self._child(report.round_id)
        now, step = int(time.time() * 1000), report.round_id
        values = round_metrics(report, self.folder.timings(report.round_id))
        metrics = [Metric(name, value, now, step) for name, value in values.items()]
        client.log_batch(
            run, metrics, tags=[RunTag(f"models.{k}", v) for k, v in report.models.items()]
        )
        client.log_batch(run, list(self._training_curves(report.round_id, now)))
        client.log_batch(parent, metrics)  # one curve through the rounds
        for path in (self.folder.timings_path(step), self.folder.grid(step)):
            if path.exists():
                client.log_artifact(run, str(local_copy(path)))
        self._log_promotion(report)
        client.set_terminated(run)
        state = self._state()
        state["logged"].append(str(report.round_id))
        write_json(self._path, state)

    def _log_promotion(self, report: RoundReport) -> None:
        """Write the parts that a later command may change: the verdict and its report."""
        client, run = self._client(), self._child(report.round_id)
        client.set_tag(run, "promotion", promotion(report))
        report_file = local_copy(self.folder.report_path(report.round_id))
        client.log_artifact(run, str(report_file))
        state = self._state()
        state["promotion"][str(report.round_id)] = promotion(report)
        write_json(self._path, state)

    def _training_curves(self, round_id: int, now: int) -> Iterator[Any]:
        from mlflow.entities import Metric

        for task in ("idm", "fdp"):
            for line in self.folder.training_log(round_id, task).lines():
                yield Metric(f"train/{task}_loss_curve", line["loss"], now, int(line["step"]))

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
            run = self._client().create_run(self._experiment(), run_name=name, tags=tags)
            state = self._state()
            state["rounds"][key] = run.info.run_id
            write_json(self._path, state)
        return str(state["rounds"][key])

    def _experiment(self) -> str:
        client, name = self._client(), self.cfg.track.experiment
        found = client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        # With the default database the artifacts lie beside it; a server knows its own place.
        place = None if self.cfg.track.uri else self._artifacts
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
            if not self.cfg.track.uri:
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
            if state["uri"] == self.cfg.track.uri:
                return state
        return {
            "uri": self.cfg.track.uri,
            "parent": None,
            "rounds": {},
            "promotion": {},
            "logged": [],
        }

    @contextmanager
    def _surviving(self, what: str) -> Iterator[None]:
        """Turn every exception into one warning: the run matters more than its log."""
        try:
            yield
        except Exception as error:  # HTTP, SQL or JSON errors of a broken server
            reason = " ".join(str(error).split())[:200]
            self._warn(
                f"warning: MLflow at {self.uri} did not take {what} ({reason}); the loop goes on, "
                "the same command again writes what is missing"
            )


def round_metrics(report: RoundReport, timings: dict[str, float]) -> dict[str, float]:
    """Flat metrics of a round: each estimate with its interval, counts, losses, seconds."""
    values: dict[str, float] = {}
    for name, estimate in report.metrics.items():
        values[name] = estimate.value
        values[f"{name}_low"], values[f"{name}_high"] = estimate.low, estimate.high
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
    """Commit of the checkout, with ``-dirty`` when files differ; "unknown" outside of one."""
    command = ["git", "-C", str(REPOSITORY_ROOT), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.stdout.strip()
