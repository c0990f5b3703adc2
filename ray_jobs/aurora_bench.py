"""AURORA-BENCH on Ray: the parts that need models go to an actor pool, the rest stays here.

``dynamics evaluate aurora-bench`` starts this module where a cluster is joined or ``--workers``
asks for it. Parts are written to ``--out``, which all nodes must share.
"""

import json
import sys
from collections.abc import Sequence

import numpy as np

from dynamics.core.config import ClusterConfig
from dynamics.core.errors import UserError
from dynamics.core.progress import Progress
from dynamics.evaluation.aurora_bench.benchmark import Benchmark, FanOut, Job, Worker
from dynamics.evaluation.aurora_bench.run import Request, run
from dynamics.storage.shards import Shard
from ray_jobs import runtime


class BenchActor:
    """A contestant's models; makes the parts that it is given."""

    def __init__(self, benchmark: Benchmark) -> None:
        self._worker = Worker(benchmark)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Jobs in, number of rows written out; durable when it returns."""
        rows = zip(batch["kind"], batch["start"].tolist(), batch["stop"].tolist(), strict=True)
        jobs = [Job(kind=kind, shard=Shard(start=start, stop=stop)) for kind, start, stop in rows]
        return {"num_rows": np.array([self._worker.make(job) for job in jobs])}


def actor_pool(num_workers: int, *, num_gpus: float = 0) -> FanOut:
    """A fan-out over that many actors; 0 takes one per CPU of the cluster."""

    def fan_out(benchmark: Benchmark, jobs: Sequence[Job], progress: Progress) -> None:
        import ray
        from ray.data import ActorPoolStrategy

        from ray_jobs.label import report_rows

        size = num_workers or int(ray.cluster_resources().get("CPU", 1))  # type: ignore[no-untyped-call]
        rows = [
            {"kind": job.kind, "start": job.shard.start, "stop": job.shard.stop} for job in jobs
        ]
        made = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            BenchActor,
            fn_constructor_args=(benchmark,),
            batch_size=1,
            compute=ActorPoolStrategy(size=min(size, len(jobs))),
            num_cpus=1,
            num_gpus=num_gpus,
        )
        report_rows(made, [job.shard for job in jobs], "answer", progress)

    return fan_out


def main(arguments: Sequence[str]) -> int:
    """Run a request, given as JSON, and turn errors into an exit status."""
    request = Request(**json.loads(arguments[0]))
    runtime.prepare_environment()
    try:
        with runtime.on_ray(ClusterConfig()):
            run(request, actor_pool(request.workers, num_gpus=request.device == "cuda"))
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    finally:
        runtime.stop_ray()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
