"""RayStages: `LocalStages` with the four stages that a cluster takes part in."""

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from dynamics.core.errors import UserError
from dynamics.core.records import DataRefs, DatasetRef, ModelRef
from dynamics.pipeline.stages import LocalStages
from dynamics.storage.shards import Shard
from dynamics.training.batches import FitJob
from dynamics.training.checkpoints import FitResult
from dynamics.training.loss import Task
from ray_jobs import runtime


class RayStages(LocalStages):
    """Labels and evaluates on Ray Data, trains on Ray Train, serves on Ray Serve.

    What is done already, where files lie and how results are put together stays in `LocalStages`.
    Ray starts at the first stage that needs it; filming and ingest do not.
    """

    def _label_shards(
        self, pool: DatasetRef, shards: Sequence[Shard], models: ModelRef, round_id: int
    ) -> None:
        with self._on_ray():
            from ray_jobs.label import label_on_ray

            label_on_ray(
                self.cfg, pool, shards, models, self.folder.ledger, round_id, self.progress
            )

    def _fit(self, jobs: dict[Task, FitJob], round_id: int) -> dict[Task, FitResult]:
        with self._on_ray():
            from ray_jobs.train import fit_on_ray

            logs = {task: self.folder.fit_log(round_id, task) for task in jobs}
            return fit_on_ray(jobs, logs, round_id, self.progress)

    def _evaluate_shards(
        self,
        data: DataRefs,
        shards: Sequence[Shard],
        models: ModelRef,
        parts: Path,
        round_id: int,
    ) -> None:
        with self._on_ray():
            from ray_jobs.evaluate import evaluate_on_ray

            evaluate_on_ray(self.cfg, data, shards, models, parts, round_id, self.progress)

    def serve(self, models: ModelRef, round_id: int) -> None:
        """Deploy the round's generator and ask it for one held-out frame over HTTP.

        A service that does not come up is one line on stderr: the rounds are worth more.
        """
        from ray_jobs.serving.serve import serve_round

        self.progress(0, 0, f"serve, round {round_id}")
        try:
            serve_round(self.cfg, self.folder, round_id)
        except UserError as error:
            sys.stderr.write(f"{error}\n")

    def _on_ray(self) -> AbstractContextManager[None]:
        if not runtime.ray_is_up():
            self.progress(0, 0, "start Ray")
        return runtime.on_ray(self.cfg.cluster)
