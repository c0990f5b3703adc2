"""Machines of a cluster, from its YAML, instance types and a live Ray."""

from pathlib import Path

import pytest
import yaml

from dynamics.core.config import REPOSITORY_ROOT
from dynamics.core.errors import UserError
from dynamics.plan.cluster import GIB, Node, live_cluster, read_cluster, this_machine


def written(folder: Path, **worker: object) -> str:
    """A cluster file with a head and up to four workers."""
    head = {"node_config": {"InstanceType": "m6i.2xlarge"}, "resources": {"CPU": 8}}
    tree = {
        "head_node_type": "head",
        "available_node_types": {"gpu": {"max_workers": 4, **worker}, "head": head},
    }
    path = folder / "cluster.yaml"
    path.write_text(yaml.safe_dump(tree))
    return str(path)


def nodes(text: str) -> tuple[Node, ...]:
    found = read_cluster(text)
    assert found is not None
    return found.nodes


def test_the_shipped_cluster_is_read() -> None:
    found = read_cluster(str(REPOSITORY_ROOT / "cluster.yaml"))
    assert found is not None
    assert found.card is not None
    assert found.nodes[0].name == "head"
    assert found.nodes[0].ram is not None


@pytest.mark.parametrize(
    ("config", "card"),
    [
        ({"InstanceType": "p5.4xlarge"}, "H100"),
        ({"machineType": "zones/us-central1-a/machineTypes/a2-ultragpu-1g"}, "A100-80G"),
        ({"azure_arm_parameters": {"vmSize": "Standard_NC24ads_A100_v4"}}, "A100-80G"),
    ],
)
def test_instance_types_of_three_clouds_are_known(
    tmp_path: Path, config: dict[str, object], card: str
) -> None:
    head, gpu = nodes(written(tmp_path, node_config=config))
    assert (head.name, head.cpus, head.ram, head.cards) == ("head", 8, 32 * GIB, 0)
    assert gpu.card is not None
    assert (gpu.name, gpu.count, gpu.cards, gpu.card.name) == ("gpu", 4, 1, card)


def test_an_unknown_instance_type_is_named_by_its_resources(tmp_path: Path) -> None:
    config = {"InstanceType": "p9.large"}
    with pytest.raises(UserError, match=r"gpu: p9\.large is not known; name what it has under"):
        read_cluster(written(tmp_path, node_config=config, resources={"CPU": 8, "GPU": 2}))
    resources = {"CPU": 8, "GPU": 2, "memory": 64 * GIB, "accelerator_type:L40S": 1}
    _, gpu = nodes(written(tmp_path, node_config=config, resources=resources))
    assert gpu.card is not None
    assert (gpu.cpus, gpu.cards, gpu.ram, gpu.card.name) == (8, 2, 64 * GIB, "L40S")


def test_a_file_without_machines_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "local.yaml"
    path.write_text("provider: {type: local}")
    with pytest.raises(UserError, match="start Ray on them and give its address"):
        read_cluster(str(path))


def test_instance_types_are_counted() -> None:
    (one,) = nodes("4xg6e.12xlarge")
    assert (one.count, one.cards, one.cpus) == (4, 4, 48)
    assert read_cluster("10.0.0.1:6379") is None


def test_nodes_of_a_live_ray_are_grouped() -> None:
    worker = {"CPU": 16.0, "GPU": 1.0, "memory": 9e10, "object_store_memory": 1e10}
    worker |= {"accelerator_type:A100": 1.0, "accelerator_type:A100-80G": 1.0}
    found = live_cluster("auto", [{"CPU": 4.0, "memory": 1e9}, worker, dict(worker)])
    head, gpu = found.nodes
    assert (head.cards, head.count) == (0, 1)
    assert gpu.card is not None
    assert (gpu.count, gpu.cards, gpu.card.name, gpu.ram) == (2, 1, "A100-80G", 10**11)
    assert found.cards == 2


def test_this_machine_has_cores_and_ram() -> None:
    (here,) = this_machine().nodes
    assert here.cpus >= 1
    assert here.ram is not None
