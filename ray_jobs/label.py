"""Ray Data: shards of the pool -> IDM actor pool -> durable attempts in the ledger.

Ray Data hands out shard numbers and balances them over the actors; the rows themselves go from
Parquet into the actor and from the actor into the ledger. So a killed actor or driver loses at
most one shard per actor, Ray's order and retries are of no consequence, and nothing but counts
passes through the object store.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray.data
from ray.data import ActorPoolStrategy

from dynamics.core.config import LoopConfig
from dynamics.core.progress import Progress
from dynamics.core.records import DatasetRef, ModelRef
from dynamics.labelling.labeller import Labeller
from dynamics.labelling.load import load_labeller
from dynamics.storage.ledger import Ledger
from dynamics.storage.shards import Shard, read_shard

Batch = dict[str, np.ndarray]


class LabelActor:
    """One IDM; labels the shards that it is given."""

    def __init__(
        self, cfg: LoopConfig, pool: DatasetRef, models: ModelRef, ledger: Path, round_id: int
    ) -> None:
        self._labeller: Labeller = load_labeller(cfg, models)
        self._pool = pool
        self._ledger = Ledger(ledger)
        self._round_id = round_id

    def __call__(self, batch: Batch) -> Batch:
        """Shards in, number of rows written out; durable when it returns."""
        written = []
        for start, stop in zip(batch["start"].tolist(), batch["stop"].tolist(), strict=True):
            pairs = read_shard(self._pool, Shard(start=start, stop=stop))
            self._ledger.write_attempt(self._round_id, self._labeller.label(pairs, self._round_id))
            written.append(pairs.num_rows)
        return {"num_rows": np.array(written)}


def label_on_ray(
    cfg: LoopConfig,
    pool: DatasetRef,
    shards: Sequence[Shard],
    models: ModelRef,
    ledger: Path,
    round_id: int,
    progress: Progress,
) -> None:
    """Label the shards; every row is in the ledger when it returns."""
    labelled = as_dataset(shards).map_batches(
        LabelActor,
        fn_constructor_args=(cfg, pool, models, ledger, round_id),
        batch_size=1,
        compute=ActorPoolStrategy(size=min(cfg.label.num_actors, len(shards))),
        num_cpus=1,
        num_gpus=cfg.label.num_gpus_per_actor,
    )
    report_rows(labelled, shards, f"label, round {round_id}", progress)


def as_dataset(shards: Sequence[Shard]) -> Any:
    """One block a shard, so that a retry repeats one shard."""
    rows = [{"start": shard.start, "stop": shard.stop} for shard in shards]
    return ray.data.from_items(rows, override_num_blocks=len(rows))


def report_rows(done: Any, shards: Sequence[Shard], what: str, progress: Progress) -> None:
    """Drive a lazy dataset of ``num_rows`` to its end, telling how far it is."""
    total, finished = sum(shard.stop - shard.start for shard in shards), 0
    progress(finished, total, what)
    for batch in done.iter_batches(batch_size=None, batch_format="numpy"):
        finished += int(batch["num_rows"].sum())
        progress(finished, total, what)
