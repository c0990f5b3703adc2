"""RayExecutor: `dynamics.pipeline.executor.Executor` on Ray."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from dynamics.core.config import LoopConfig
from dynamics.core.errors import UserError
from dynamics.core.progress import Progress
from dynamics.core.records import ModelRef
from dynamics.models.image_tokenizer import ImageTokenizer
from dynamics.pipeline.decoding import driver_images
from dynamics.pipeline.executor import StreamStage
from dynamics.storage.run_folder import RunFolder, read_json, write_json
from dynamics.storage.streams import Done, Stream, run_stream
from dynamics.training.batches import FitJob
from dynamics.training.checkpoints import FitResult
from dynamics.training.loss import Task
from ray_jobs import runtime
from ray_jobs.origin import cluster_hardware

if TYPE_CHECKING:  # imports Ray
    from ray_jobs.sight import Sight


_LOG = logging.getLogger(__name__)


class RayExecutor:
    """Labels and evaluates on Ray Data, trains on Ray Train, serves on Ray Serve.

    Ray starts at the first work that needs it. What costs no model's time to speak of on this
    machine, ingest and the guards' decoding, goes to Ray only where a cluster is joined.
    """

    def __init__(self, cfg: LoopConfig, folder: RunFolder) -> None:
        self.cfg = cfg
        self.folder = folder
        self._sight: Sight | None = None
        self._most_nodes = 0

    @cached_property
    def images(self) -> ImageTokenizer:
        """The run's image tokenizer, which decodes on the cluster where one is joined."""
        elsewhere = runtime.joins_cluster() or self.cfg.model.device != "cpu"
        return driver_images(self.cfg, partial(self.run_stream, "decode"), elsewhere=elsewhere)

    def run_stream(
        self, stage: StreamStage, stream: Stream[Any], progress: Progress
    ) -> Iterator[Done]:
        """Run the stream on a pool of the stage's actors."""
        cfg = self.cfg
        num_actors, gpus = {
            "label": (cfg.label.num_actors, "label.num_gpus_per_actor"),
            "evaluate": (cfg.evaluate.num_actors, "label.num_gpus_per_actor"),
        }.get(stage, (cfg.ingest.num_actors, "ingest.num_gpus_per_actor"))
        if stage in ("ingest", "decode") and not runtime.joins_cluster():
            yield from run_stream(stream, progress)
            return
        num_gpus = self._gpus(gpus)
        with self._on_ray(progress) as sight:
            from ray_jobs.streams import run_stream_on_ray

            seen = sight.checked(stream)
            yield from run_stream_on_ray(seen, progress, num_actors=num_actors, num_gpus=num_gpus)

    def fit(
        self, jobs: Mapping[Task, FitJob], round_id: int, progress: Progress
    ) -> dict[Task, FitResult]:
        """Fit the adapters side by side, each on ``train.num_workers``."""
        self._gpus("train.num_gpus_per_worker")
        with self._on_ray(progress) as sight:
            from ray_jobs.train import fit_on_ray

            logs = {task: self.folder.training_log(round_id, task) for task in jobs}
            return fit_on_ray(jobs, logs, round_id, progress, sight)

    def serve(self, models: ModelRef, round_id: int, progress: Progress) -> None:
        """Deploy the round's generator and ask it for one held-out frame over HTTP.

        A service that fails to start costs one line on stderr, never the loop.
        """
        from ray_jobs.serving.serve import serve_round

        progress(0, 0, f"serve, round {round_id}")
        try:
            serve_round(self.cfg, self.folder, round_id, self.images)
        except UserError as error:
            _LOG.warning("%s", error)

    def _gpus(self, key: str) -> float:
        """The GPUs that a setting gives to a worker.

        Raises:
            UserError: none, and models go to GPUs: Ray hides those that a worker has not asked for.
        """
        section, name = key.split(".")
        amount: float = getattr(getattr(self.cfg, section), name)
        if not amount and self.cfg.model.device != "cpu":
            raise UserError(f"model.device={self.cfg.model.device} needs {key} above 0, e.g. 1")
        return amount

    @contextmanager
    def _on_ray(self, progress: Progress) -> "Iterator[Sight]":
        """Run the body with Ray up and every node seeing the run's places."""
        if not runtime.ray_is_up():
            progress(0, 0, "start Ray")
        with runtime.on_ray(self.cfg.cluster):
            from ray_jobs.sight import sight_of

            self._sight = self._sight or sight_of(self.cfg, self.folder.root)
            self._sight.check_all_nodes()
            self._write_hardware()
            yield self._sight
            self._write_hardware()

    def _write_hardware(self) -> None:
        """Tell of a joined cluster at its largest: nodes come when a stage asks for them."""
        if not runtime.joins_cluster():
            return
        import ray

        known = ray.nodes()  # type: ignore[no-untyped-call]
        nodes = [node for node in known if node["Alive"]]
        if len(nodes) > self._most_nodes:
            self._most_nodes = len(nodes)
            made = {**read_json(self.folder.origin), "hardware": cluster_hardware(nodes)}
            write_json(self.folder.origin, made)
