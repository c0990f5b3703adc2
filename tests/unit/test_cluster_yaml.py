"""cluster.yaml against Ray's own schema, offline, and against our security rules."""

import copy
from typing import Any

import pytest
import yaml
from jsonschema import ValidationError

from dynamics.core.config import REPOSITORY_ROOT

ROOT = REPOSITORY_ROOT


def validated(config: dict[str, Any]) -> dict[str, Any]:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


@pytest.fixture
def cluster() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def test_ray_accepts_the_file(cluster):
    assert validated(cluster)["provider"]["type"] == "aws"


def test_ray_refuses_a_misspelt_key(cluster):
    cluster["available_node_types"]["gpu_spot"]["min_worker"] = 1
    with pytest.raises(ValidationError, match="min_worker"):
        validated(cluster)


def test_head_is_on_demand_and_every_worker_on_spot(cluster):
    head = cluster["head_node_type"]
    for name, node in cluster["available_node_types"].items():
        market = node["node_config"].get("InstanceMarketOptions", {}).get("MarketType")
        assert market == (None if name == head else "spot")


def test_gpu_workers_offer_their_gpu(cluster):
    assert cluster["available_node_types"]["gpu_spot"]["resources"]["GPU"] >= 1


def test_every_node_demands_the_token(cluster):
    assert "/home/ubuntu/.ray/auth_token" in cluster["file_mounts"]
    assert any("RAY_AUTH_MODE=token" in line for line in cluster["initialization_commands"])


def test_no_port_but_ssh_is_public(cluster):
    assert "security_group" not in cluster["provider"]  # Ray's own opens port 22 only
    start = " ".join(cluster["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in start
    assert "0.0.0.0" not in (ROOT / "cluster.yaml").read_text()


def test_nodes_install_the_pinned_packages(cluster):
    assert any("make setup" in line for line in cluster["setup_commands"])
    assert "constraints.txt" in (ROOT / "Makefile").read_text()
