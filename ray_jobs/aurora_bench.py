"""AURORA-BENCH on Ray: the parts that need models go to an actor pool, the rest stays here.

``dynamics evaluate aurora-bench`` starts this module where a cluster is joined or ``--workers``
asks for it. Parts are written to ``--out``, which all nodes must share.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from dynamics.core.config import ClusterConfig
from dynamics.core.errors import as_user_error
from dynamics.core.progress import Progress
from dynamics.evaluation.aurora_bench.run import Request, run
from dynamics.storage.streams import Done, RunStream, Stream
from ray_jobs import runtime


def actor_pool(num_workers: int, *, num_gpus: float = 0) -> RunStream:
    """Runs a stream on ``num_workers`` actors; 0 takes one per CPU of the cluster."""

    def run_parts(stream: Stream[Any], progress: Progress) -> Iterator[Done]:
        import ray

        from ray_jobs.streams import run_stream_on_ray

        size = num_workers or int(ray.cluster_resources().get("CPU", 1))  # type: ignore[no-untyped-call]
        return run_stream_on_ray(stream, progress, num_actors=size, num_gpus=num_gpus)

    return run_parts


def main(arguments: Sequence[str]) -> int:
    """Run a request, given as JSON, and turn errors into an exit status."""
    request = Request(**json.loads(arguments[0]))
    runtime.prepare_environment()
    try:
        with runtime.on_ray(ClusterConfig()):
            run(request, actor_pool(request.workers, num_gpus=request.device == "cuda"))
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if (line := as_user_error(error)) is None:
            raise
        sys.stderr.write(f"error: {line}\n")
        return 2
    finally:
        runtime.stop_ray()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
