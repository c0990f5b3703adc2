"""Fits on a cluster whose nodes come and go: `python -m tests.elastic CASE BASE FOLDER`.

A driver of its own, since a process can be in one Ray only. The last line is the result as JSON.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster

from dynamics.core.config import ClusterConfig, LoraConfig, TrainConfig
from dynamics.core.errors import UserError
from dynamics.storage.run_folder import TrainingLog
from dynamics.training.batches import FitJob
from dynamics.training.fit import fit_adapter
from ray_jobs import runtime
from tests.unit.training.test_fit import fit_job


def fit(job: FitJob, folder: Path, watch: Callable[[], None]) -> None:
    """Fit on Ray; ``watch`` is called every second."""
    from ray_jobs import train
    from ray_jobs.sight import make_sight

    train.RESIZE_AFTER_S = 2.0
    with runtime.on_ray(ClusterConfig()):
        logs = {"fdp": TrainingLog(folder / "fdp.jsonl")}
        sight = make_sight(folder, ())
        train.fit_on_ray({"fdp": job}, logs, 0, lambda *_, **__: watch(), sight)


def saved(job: FitJob) -> list[tuple[int, int]]:
    """Step and number of workers of the checkpoints that are there."""
    names = (path.name.split("-") for path in job.checkpoint_dir.glob("*.safetensors"))
    return sorted({(int(name[0]), int(name[1].partition("of")[2])) for name in names})


def resized(cluster: Any, job: FitJob, folder: Path) -> dict[str, Any]:
    """A node with two of four GPUs is lost, and another one comes: 4, 2, 4 workers.

    The loss is one failure too many, but there was a checkpoint: another trainer goes on.
    """
    seen: list[int] = []
    cluster.add_node(num_cpus=2, num_gpus=2)
    node = cluster.add_node(num_cpus=2, num_gpus=2)

    def watch() -> None:
        found = saved(job)
        if not found or [found[-1][1]] == seen[-1:]:
            return
        seen.append(found[-1][1])
        if seen == [4]:
            cluster.remove_node(node, allow_graceful=False)
        elif seen == [4, 2]:
            cluster.add_node(num_cpus=2, num_gpus=2)

    fit(job, folder, watch)
    return {"workers": seen}


def announced(cluster: Any, job: FitJob, folder: Path) -> dict[str, Any]:
    """A node is announced to go in 15 s, and goes."""
    import ray
    from ray._raylet import GcsClient
    from ray.core.generated import autoscaler_pb2

    cluster.add_node(num_cpus=1)
    node = cluster.add_node(num_cpus=1)
    announced_at: list[float] = []
    in_time: list[int] = []

    def watch() -> None:
        steps = TrainingLog(folder / "fdp.jsonl").last_step()
        if steps and not announced_at:
            reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
            deadline_ms = int((time.time() + 15) * 1000)
            client = GcsClient(address=ray.get_runtime_context().gcs_address)
            client.drain_node(node.node_id, reason, "spot", deadline_ms)
            announced_at.append(time.monotonic())
        in_time.extend(step for step, _ in saved(job) if announced_at and not in_time)
        gone = announced_at and time.monotonic() - announced_at[0] > 15
        if gone and node in cluster.worker_nodes:
            cluster.remove_node(node, allow_graceful=False)

    fit(job, folder, watch)
    return {"saved": in_time}


def starved(cluster: Any, job: FitJob, folder: Path) -> dict[str, Any]:
    """Three GPUs are asked for where there is one."""
    cluster.add_node(num_cpus=4, num_gpus=1)
    begun = time.monotonic()
    try:
        fit(job, folder, lambda: None)
    except UserError as error:
        return {"error": str(error), "seconds": time.monotonic() - begun}
    return {}


ON_GPUS = {"num_workers": 4, "num_gpus_per_worker": 1}
CASES = {
    "resized": (resized, 900, ON_GPUS | {"strategy": "fsdp2", "checkpoint_every": 5}),
    "announced": (announced, 300, {"num_workers": 2, "checkpoint_every": 10_000}),
    "starved": (starved, 300, ON_GPUS | {"min_workers": 3}),
}
"""What happens, steps, settings of training. Only Ray's books have GPUs: models are on CPUs."""


def main(case: str, base: str, folder: Path) -> None:
    """Run a case."""
    run, steps, changes = CASES[case]
    common = {"batch_size": 150, "learning_rate": 1e-4, "max_failures": 0}
    train = TrainConfig(lora=LoraConfig(r=4, alpha=8), **common, **changes)
    job = fit_job(Path(base), folder, train, steps)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    os.environ["RAY_ADDRESS"] = cluster.address
    result = run(cluster, job, folder)
    if job.out.exists():
        result["loss"] = json.loads((job.out / "fit.json").read_text())["loss"]
        alone = replace(job, out=folder / "alone", checkpoint_dir=folder / "alone-checkpoints")
        result["alone"] = fit_adapter(alone).loss
    print(json.dumps(result), flush=True)  # noqa: T201 - the test reads it
    os._exit(0)  # what a starved driver leaves behind needs no farewell


if __name__ == "__main__":
    runtime.prepare_environment()
    main(*sys.argv[1:3], Path(sys.argv[3]))
