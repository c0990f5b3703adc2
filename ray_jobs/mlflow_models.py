"""A round's adapters in MLflow: logged models, and versions of two registered models.

``NAME-idm`` and ``NAME-fdp`` get a version a round; the alias ``promoted`` is at the newest round
that is promoted. Everything may be sent again.
"""

import re
from typing import TYPE_CHECKING

from dynamics.storage.files import local_copy
from dynamics.storage.run_folder import RunFolder
from ray_jobs.outbox import Entry

if TYPE_CHECKING:
    from mlflow import MlflowClient

ALIAS = "promoted"
_TASKS = ("idm", "fdp")


class MlflowModels:
    """The adapters of a run in MLflow; every method raises what mlflow raises.

    Args:
        client: connection to MLflow.
        experiment: number of the experiment.
        folder: the run.
        start: first entry of its outbox.
    """

    def __init__(
        self, client: "MlflowClient", experiment: str, folder: RunFolder, start: Entry
    ) -> None:
        self._client, self._experiment, self._folder = client, experiment, folder
        self._run = start["run"]
        self._name = re.sub(r"[^\w-]", "-", start["config"]["name"])

    def log(self, run: str, entry: Entry) -> None:
        """Write the adapters of a finished round, whose child run is ``run``."""
        for task in _TASKS:
            if self._folder.adapter(entry["round"], task).exists():
                self._add_version(run, entry, task)

    def mark(self, run: str, verdict: str) -> None:
        """Write the verdict on a round to its versions, and put the alias where it belongs."""
        client = self._client
        for task in _TASKS:
            name = f"{self._name}-{task}"
            for one in client.search_model_versions(f"name = '{name}' and run_id = '{run}'"):
                client.set_model_version_tag(name, one.version, "promotion", verdict)
            found = client.search_model_versions(f"name = '{name}' and tags.run = '{self._run}'")
            promoted = {
                int(one.tags["round"]): one.version
                for one in found
                if not one.tags.get("promotion", "blocked").startswith("blocked")
            }
            if promoted:
                client.set_registered_model_alias(name, ALIAS, promoted[max(promoted)])
            elif found and client.get_registered_model(name).aliases.get(ALIAS) in {
                one.version for one in found
            }:
                client.delete_registered_model_alias(name, ALIAS)

    def _add_version(self, run: str, entry: Entry, task: str) -> None:
        from mlflow.entities import LoggedModelStatus

        client, name = self._client, f"{self._name}-{task}"
        tags = {"run": self._run, "round": str(entry["round"])}
        wanted = f"name = '{name}' and source_run_id = '{run}'"
        found = client.search_logged_models([self._experiment], wanted)
        model = (
            found[0]
            if found
            else client.create_logged_model(
                self._experiment, name, run, tags, entry["models"], "adapter"
            )
        )
        if model.status != LoggedModelStatus.READY:  # new, or a command was killed here
            adapter = local_copy(self._folder.adapter(entry["round"], task))
            client.log_model_artifacts(model.model_id, str(adapter))
            client.finalize_logged_model(model.model_id, "READY")
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name)
        if not client.search_model_versions(f"name = '{name}' and run_id = '{run}'"):
            source = model.artifact_location
            client.create_model_version(name, source, run, tags, model_id=model.model_id)
