"""Executors: where the work of a run goes on. `LocalExecutor` is this process.

    INGEST    clips, or pairs of a labelled set       -> units of a table
    LABEL     shards of the pool, the promoted IDM    -> attempts in the ledger
    FIT       the training set, a job per task        -> adapters of the round, loss curves
    EVALUATE  shards of the held-out pairs, adapters  -> parts of the evaluation
    DECODE    codes of the leakage guard and reports  -> hashes, frames
    SERVE     the promoted round                      -> a generator that answered

Each waits for the one above it. `dynamics.pipeline.stages.Stages` gives an executor only the work
that is missing, and joins the results.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np

from dynamics.core.config import LoopConfig
from dynamics.core.places import Place
from dynamics.core.progress import Detail, Progress
from dynamics.core.records import TRANSITION_SCHEMA, ModelRef
from dynamics.inference.best_of_n import best_of_n
from dynamics.inference.load import load_pair
from dynamics.inference.sampling import SamplingParams
from dynamics.models.image_tokenizer import ImageTokenizer
from dynamics.pipeline.decoding import driver_images
from dynamics.storage.run_folder import RunFolder, TrainingLog
from dynamics.storage.streams import Done, Stream, run_stream
from dynamics.storage.tables import codes_matrix, read_table
from dynamics.training.batches import FitJob
from dynamics.training.checkpoints import FitResult
from dynamics.training.fit import WorkerContext, fit_adapter
from dynamics.training.loss import Task

StreamStage = Literal["ingest", "label", "evaluate", "decode"]


class Executor(Protocol):
    """Runs the work of a run."""

    @property
    def images(self) -> ImageTokenizer:
        """The run's image tokenizer, for the driver."""

    def run_stream(
        self, stage: StreamStage, stream: Stream[Any], progress: Progress
    ) -> Iterator[Done]:
        """Run a stream; the part of an item is durable when its result comes."""

    def fit(
        self, jobs: Mapping[Task, FitJob], round_id: int, progress: Progress
    ) -> dict[Task, FitResult]:
        """Fit the round's adapters; they are durable when it returns."""

    def serve(self, models: ModelRef, round_id: int, progress: Progress) -> None:
        """Have the round's generator draw one held-out frame; never ends the loop."""


class LocalExecutor:
    """Runs all work in sequence in this process: for tests, a debugger, one GPU without Ray."""

    def __init__(self, cfg: LoopConfig, folder: RunFolder) -> None:
        self.cfg = cfg
        self.folder = folder

    @cached_property
    def images(self) -> ImageTokenizer:
        """The run's image tokenizer, which decodes on the GPU where there is one."""
        return driver_images(self.cfg, run_stream, elsewhere=self.cfg.model.device != "cpu")

    def run_stream(
        self, stage: StreamStage, stream: Stream[Any], progress: Progress
    ) -> Iterator[Done]:
        """Work on one item after the other."""
        return run_stream(stream, progress)

    def fit(
        self, jobs: Mapping[Task, FitJob], round_id: int, progress: Progress
    ) -> dict[Task, FitResult]:
        """Fit one adapter after the other."""
        results: dict[Task, FitResult] = {}
        for task, job in jobs.items():
            what = f"train {task.upper()}, round {round_id}"
            progress(0, job.steps, what)
            report = _Reporter(self.folder.training_log(round_id, task), progress, what, task)
            results[task] = fit_adapter(job, WorkerContext(report=report))
        return results

    def serve(self, models: ModelRef, round_id: int, progress: Progress) -> None:
        """Draw the best of N for the first held-out pair."""
        progress(0, 1, f"generate, round {round_id}")
        idm, fdp = load_pair(models, self.cfg.model)
        frame, action = first_example(self.folder, fdp.images)
        best_of_n(
            fdp.images.encode(frame[None]),
            [action],
            idm,
            fdp,
            SamplingParams(
                num_samples=self.cfg.serve.num_samples,
                temperature=self.cfg.evaluate.temperature,
                guidance=self.cfg.serve.guidance,
            ),
            verifier=self.cfg.serve.verifier,
            seeds=[self.cfg.seed],
        )
        progress(1, 1, f"generate, round {round_id}")


@dataclass(frozen=True, slots=True)
class _Reporter:
    """Reports a fit's steps to its training log and to the progress callback."""

    log: TrainingLog
    progress: Progress
    what: str
    task: Task

    def __call__(self, step: int, metrics: dict[str, float], checkpoint: Place | None) -> None:
        self.log.append(step, metrics)
        detail = Detail(losses={self.task: metrics["loss"]})
        self.progress(step, int(metrics["steps"]), self.what, detail)


def first_example(folder: RunFolder, images: ImageTokenizer) -> tuple[np.ndarray, str]:
    """The run's first held-out pair as uint8 frame [H, W, 3] and action sentence."""
    columns = ["source_codes", "action"]
    first = read_table(folder.heldout, TRANSITION_SCHEMA, columns).slice(0, 1)
    return images.decode(codes_matrix(first, "source_codes"))[0], first["action"][0].as_py()
