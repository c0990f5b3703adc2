"""Ray Data: shards -> a pool of actors with a worker each -> durable rows.

Ray Data hands out shard numbers and balances them over the actors; the rows themselves go from
Parquet into the actor and from the actor to the disk. So a killed actor or driver loses at most
one shard per actor, Ray's order and retries do not matter, and only counts pass through the object
store.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import ray.data
from ray.data import ActorPoolStrategy

from dynamics.core.progress import Progress
from dynamics.storage.shards import AnyShard, MakeWorker, Shard, ShardWorker, num_rows

Batch = dict[str, np.ndarray]


class ShardActor:
    """A worker that runs shards by their numbers."""

    def __init__(self, make_worker: MakeWorker[Shard], shards: Sequence[Shard]) -> None:
        self._make_worker = make_worker
        self._shards = shards

    @cached_property
    def _worker(self) -> ShardWorker[Shard]:
        """Made at the first shard: Ray passes on an actor's own errors, not its constructor's."""
        return self._make_worker()

    def __call__(self, batch: Batch) -> Batch:
        """Run shards; returns the numbers of rows, which are durable by then."""
        written = [self._worker.run(self._shards[number]) for number in batch["shard"].tolist()]
        return {"num_rows": np.array(written)}


def run_shards_on_ray(
    make_worker: MakeWorker[AnyShard],
    shards: Sequence[AnyShard],
    what: str,
    progress: Progress,
    *,
    num_actors: int,
    num_gpus: float,
) -> None:
    """`dynamics.storage.shards.run_shards` over at most ``num_actors``, each with its GPUs."""
    # One block a shard, so that a retry repeats one shard.
    numbers = [{"shard": number} for number in range(len(shards))]
    written = ray.data.from_items(numbers, override_num_blocks=len(numbers)).map_batches(
        ShardActor,
        fn_constructor_args=(make_worker, shards),
        batch_size=1,
        compute=ActorPoolStrategy(size=min(num_actors, len(shards))),
        num_cpus=1,
        num_gpus=num_gpus,
    )
    total, done = num_rows(shards), 0
    progress(done, total, what)
    for batch in written.iter_batches(batch_size=None, batch_format="numpy"):
        done += int(batch["num_rows"].sum())
        progress(done, total, what)
