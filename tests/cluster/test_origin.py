"""What a run says of the hardware that made it."""

from pathlib import Path

import pytest

from dynamics.core.config import LoopConfig
from dynamics.core.progress import silent
from dynamics.storage.run_folder import RunFolder, read_json, write_json
from ray_jobs.executor import RayExecutor
from ray_jobs.origin import cluster_hardware, origin


def test_a_cluster_is_its_nodes_cpus_and_gpus_with_their_names() -> None:
    head = {"Resources": {"CPU": 8.0, "memory": 1e9}}
    worker = {"Resources": {"CPU": 1996.0, "GPU": 1.0, "accelerator_type:H100": 1.0}}
    assert cluster_hardware([head]) == "Ray cluster of 1 node, 8 CPUs, 0 GPUs"
    assert cluster_hardware([head, worker]) == "Ray cluster of 2 nodes, 2,004 CPUs, 1 GPU, H100"


@pytest.mark.cluster
@pytest.mark.usefixtures("local_ray")
def test_a_run_tells_of_the_cluster_it_joins_and_else_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    cfg, folder = LoopConfig(name="made"), RunFolder(tmp_path)
    executor = RayExecutor(cfg, folder)
    write_json(folder.origin, made := origin(cfg))
    with executor._on_ray(silent):
        assert read_json(folder.origin) == made
    monkeypatch.setenv("RAY_ADDRESS", "a cluster")
    with executor._on_ray(silent):
        told = read_json(folder.origin)
    assert {**told, "hardware": made["hardware"]} == made
    cpus = int(ray.cluster_resources()["CPU"])
    assert told["hardware"].startswith(f"Ray cluster of 1 node, {cpus} CPU")
