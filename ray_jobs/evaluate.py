"""Ray Data over the held-out pairs: shards -> actors with both adapters -> durable parts."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ray.data import ActorPoolStrategy

from dynamics.core.config import LoopConfig
from dynamics.core.progress import Progress
from dynamics.core.records import DataRefs, ModelRef
from dynamics.evaluation.worker import Evaluator
from dynamics.storage.shards import Shard
from ray_jobs.label import Batch, as_dataset, report_rows


class EvaluateActor:
    """Both adapters of a round on one base; evaluates the shards that it is given."""

    def __init__(
        self, cfg: LoopConfig, data: DataRefs, models: ModelRef, parts: Path, round_id: int
    ) -> None:
        self._evaluator = Evaluator(cfg, data, models, parts, round_id)

    def __call__(self, batch: Batch) -> Batch:
        """Shards in, number of rows written out; durable when it returns."""
        written = [
            self._evaluator.write_part(Shard(start=start, stop=stop))
            for start, stop in zip(batch["start"].tolist(), batch["stop"].tolist(), strict=True)
        ]
        return {"num_rows": np.array(written)}


def evaluate_on_ray(
    cfg: LoopConfig,
    data: DataRefs,
    shards: Sequence[Shard],
    models: ModelRef,
    parts: Path,
    round_id: int,
    progress: Progress,
) -> None:
    """Evaluate the shards; every part is on disk when it returns."""
    evaluated = as_dataset(shards).map_batches(
        EvaluateActor,
        fn_constructor_args=(cfg, data, models, parts, round_id),
        batch_size=1,
        compute=ActorPoolStrategy(size=min(cfg.evaluate.num_actors, len(shards))),
        num_cpus=1,
        num_gpus=cfg.label.num_gpus_per_actor,
    )
    report_rows(evaluated, shards, f"evaluate, round {round_id}", progress)
