"""The runs of a run folder in MLflow: a parent for the bootstrap, a child for every round.

They are found by the tag ``run``, which the outbox names, wherever the folder was moved to and
whatever was killed. Everything may be sent again.
"""

import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from dynamics.core.errors import UserError
from dynamics.storage.files import local_copy
from dynamics.storage.run_folder import RunFolder, flatten
from dynamics.storage.tables import dataset_ref
from ray_jobs.mlflow_models import MlflowModels
from ray_jobs.outbox import Entry, Point

_MAX_PARAMS_A_CALL = 100
_MAX_VALUE = 500
_MAX_DIGEST = 36
_CLIENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    # A database that is deleted while it is open would go on taking points that nobody finds.
    "MLFLOW_SQLALCHEMYSTORE_POOLCLASS": "NullPool",
}
"""A server that hangs holds a command up for so long; what the environment says comes first."""
_PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""Columns of MLflow's database that name places of artifacts."""


class MlflowRuns:
    """A connection to the runs; imports mlflow.

    Args:
        folder: the run.
        start: first entry of its outbox.
        server: URI of a tracking server; None = the database in the run folder.
        experiment: name of the experiment, made where it is missing.

    Raises:
        UserError: the experiment, or a run of it, was deleted in MLflow's page.
        Exception: whatever mlflow raises when the server or the database do not answer.
    """

    def __init__(
        self, folder: RunFolder, start: Entry, server: str | None, experiment: str
    ) -> None:
        for name, value in _CLIENT.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient
        from mlflow.entities import ViewType

        self._folder, self._start, self._server = folder, start, server
        self.uri = server or f"sqlite:///{folder.mlflow}"
        self._client = MlflowClient(tracking_uri=self.uri)
        self._experiment = self._found_experiment(experiment)
        self._models = MlflowModels(self._client, self._experiment, folder, start)
        self._runs: dict[int | None, str] = {}
        self._complete: set[int | None] = set()
        self._running: set[int | None] = set()
        found = self._client.search_runs(
            [self._experiment],
            f"tags.run = '{start['run']}'",
            ViewType.ALL,
            max_results=10_000,
            order_by=["attributes.start_time DESC"],
        )
        for run in found:  # the first one made wins
            if run.info.lifecycle_stage == "deleted":
                raise self._deleted(f"run {run.info.run_name}", "runs", "run-id", run.info.run_id)
            round_id = run.data.tags.get("round")
            key = None if round_id is None else int(round_id)
            self._runs[key] = run.info.run_id
            if "config" in run.data.tags:
                self._complete.add(key)

    @property
    def has_parent(self) -> bool:
        """False where nothing was sent, or what was sent is lost."""
        return None in self._runs

    def send(self, entries: list[Entry]) -> None:
        """Write some entries of one kind and round (`Outbox.batch`)."""
        first = entries[0]
        run = self._open(first)
        send: Mapping[str, Callable[[str, Entry], None]] = {
            "results": self._results,
            "promotion": self._promotion,
            "end": self._end,
        }
        if first["kind"] in send:
            send[first["kind"]](run, first)
        else:
            self._points(run, [Point(*p) for entry in entries for p in entry.get("points", ())])

    def _open(self, entry: Entry) -> str:
        """The run of an entry's round, made where it is missing, with its config."""
        key = entry["round"]
        parent = self._runs[None] if key is not None else None
        if key not in self._runs:
            tags = {**self._start["tags"], "run": self._start["run"]}
            tags["kind"] = "bootstrap" if key is None else "round"
            name = self._start["config"]["name"]
            if parent is not None:
                tags |= {"round": str(key), "mlflow.parentRunId": parent}
                name = f"{name}-round-{key:02d}"
            made = self._client.create_run(self._experiment, entry["time"], tags, name)
            self._runs[key] = made.info.run_id
        run = self._runs[key]
        if key not in self._complete and "config" in entry:
            self._params(run, entry["config"])
            if parent is None:
                self._client.log_dict(run, entry["config"], "config.json")
            self._client.set_tag(run, "config", "written")
            self._complete.add(key)
        if entry["kind"] in ("start", "begin", "points"):
            for one in {None, key} - self._running:
                self._client.update_run(self._runs[one], status="RUNNING")
                self._running.add(one)
        return run

    def _params(self, run: str, config: dict[str, Any]) -> None:
        from mlflow.entities import Param

        flat = sorted(flatten(config).items())
        params = [Param(key, str(value)[:_MAX_VALUE]) for key, value in flat]
        for start in range(0, len(params), _MAX_PARAMS_A_CALL):
            self._client.log_batch(run, params=params[start : start + _MAX_PARAMS_A_CALL])

    def _points(self, run: str, points: Iterable[Point]) -> None:
        from mlflow.entities import Metric

        self._client.log_batch(run, [Metric(*point) for point in points])

    def _results(self, run: str, entry: Entry) -> None:
        """Write a finished round; the parent gets its results too, one curve through the rounds."""
        from mlflow.entities import RunTag

        client, step, parent = self._client, entry["round"], self._runs[None]
        points = [
            Point(name, value, entry["time"], step) for name, value in entry["values"].items()
        ]
        self._points(run, points)
        self._points(parent, points)
        client.log_batch(run, tags=[RunTag(f"models.{k}", v) for k, v in entry["models"].items()])
        # Bounds of the intervals are a table, out of the charts.
        names = ["metric", "value", "low", "high", "num_items"]
        client.log_dict(run, {"columns": names, "data": entry["intervals"]}, "intervals.json")
        shown = json.dumps([{"path": "intervals.json", "type": "table"}])
        client.set_tag(run, "mlflow.loggedArtifacts", shown)
        for path in (self._folder.timings_path(step), self._folder.grid(step)):
            if path.exists():
                client.log_artifact(run, str(local_copy(path)))
        self._pictures(parent, step)
        self._datasets(run, step)
        self._models.log(run, entry)
        self._promotion(run, entry)
        self._page()
        client.set_terminated(run, end_time=entry["time"])
        self._running.discard(step)

    def _pictures(self, parent: str, step: int) -> None:
        """The round's sample frames as the parent's picture of that step."""
        path = self._folder.grid(step)
        if path.exists():
            with Image.open(local_copy(path)) as grid:
                self._client.log_image(parent, grid, key="samples", step=step)

    def _datasets(self, run: str, step: int) -> None:
        """The tables that the round read, with their digests, as inputs of its run."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        tables = {
            "training": self._folder.training_set(step),
            "pool": self._folder.pool,
            "heldout": self._folder.heldout,
        }
        inputs = []
        for context, table in tables.items():
            if table.exists():
                digest = dataset_ref(table).digest[:_MAX_DIGEST]
                uri = str(table)
                kind = urlsplit(uri).scheme or "local"
                known = Dataset(context, digest, kind, json.dumps({"uri": uri}))
                inputs.append(DatasetInput(known, [InputTag("mlflow.data.context", context)]))
        self._client.log_inputs(run, inputs)

    @property
    def address(self) -> str:
        """The parent's page, as MLflow's server has it behind its own address."""
        return f"/#/experiments/{self._experiment}/runs/{self._runs[None]}"

    def _promotion(self, run: str, entry: Entry) -> None:
        """Write the parts that a later command may change: the verdict and its report."""
        self._client.set_tag(run, "promotion", entry["verdict"])
        self._models.mark(run, entry["verdict"])
        report = local_copy(self._folder.report_path(entry["round"]))
        self._client.log_artifact(run, str(report))

    def _end(self, run: str, entry: Entry) -> None:
        self._page()
        for one in {self._runs[None], run}:
            self._client.set_terminated(one, entry["status"], entry["time"])
        self._running.clear()

    def _page(self) -> None:
        if self._folder.page.exists():
            self._client.log_artifact(self._runs[None], str(local_copy(self._folder.page)))

    def _found_experiment(self, name: str) -> str:
        artifacts = (self._folder.tracking / "mlartifacts").as_uri()
        found = self._client.get_experiment_by_name(name)
        if found is None:
            # With the default database the artifacts lie beside it; a server knows its own place.
            place = None if self._server else artifacts
            return str(self._client.create_experiment(name, artifact_location=place))
        number = str(found.experiment_id)
        if found.lifecycle_stage == "deleted":
            raise self._deleted(f"experiment {name}", "experiments", "experiment-id", number)
        if not self._server and found.artifact_location != artifacts:
            self._follow_move(str(found.artifact_location), artifacts)
        return number

    def _deleted(self, what: str, command: str, option: str, number: str) -> UserError:
        return UserError(
            f"{what} was deleted; to restore it: MLFLOW_TRACKING_URI={self.uri} "
            f"mlflow {command} restore --{option} {number}"
        )

    def _follow_move(self, old: str, new: str) -> None:
        """Update the run folder's path in its database, which names artifacts absolutely."""
        with closing(sqlite3.connect(self._folder.mlflow)) as database, database:
            for table, column in _PLACES:
                database.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                    f"WHERE substr({column}, 1, ?) = ?",
                    (new, len(old) + 1, len(old), old),
                )
