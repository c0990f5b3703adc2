"""cluster.yaml against Ray's own schema, offline, and against our security rules."""

import copy
import json
import logging
import os
import subprocess
from pathlib import Path
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


def test_only_the_head_installs_packages_and_only_those_of_a_run(cluster):
    assert any("make setup" in line and "EXTRAS=aws" in line for line in head_setup(cluster))
    assert "constraints.txt" in (ROOT / "Makefile").read_text()
    workers = [*cluster["setup_commands"], *cluster["worker_setup_commands"]]
    assert not any("pip" in line or "make" in line for line in workers)


def head_setup(cluster: dict[str, Any]) -> list[str]:
    return [*cluster["setup_commands"], *cluster["head_setup_commands"]]


def test_every_apt_waits_for_the_one_that_a_first_boot_starts(cluster):
    lines = [*head_setup(cluster), *cluster["worker_setup_commands"]]
    calls = [call for line in lines for call in line.split("apt-get")[1:]]
    assert calls
    assert all(call.startswith(" -o DPkg::Lock::Timeout=") for call in calls)


@pytest.mark.slow  # an EC2 in this process: ten seconds
def test_ray_hands_the_images_name_to_ec2_as_it_is(cluster, monkeypatch):
    import boto3
    from moto import mock_aws
    from ray.autoscaler._private.aws.config import _check_ami
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    with mock_aws():
        ec2 = boto3.client("ec2", cluster["provider"]["region"])
        config = validated(cluster)
        _check_ami(config)
        head = config["available_node_types"][config["head_node_type"]]["node_config"]
        head["SubnetIds"] = [ec2.describe_subnets()["Subnets"][0]["SubnetId"]]
        AWSNodeProvider(config["provider"], "dynamics").create_node(head, {}, 1)
        (instance,) = ec2.describe_instances()["Reservations"][0]["Instances"]
    assert instance["ImageId"].startswith("resolve:ssm:/aws/service/deeplearning/ami/")
    assert instance["InstanceType"] == "r6i.2xlarge"


def test_the_head_names_its_own_image_for_workers(cluster, tmp_path):
    fake = tmp_path / "curl"
    fake.write_text("#!/bin/sh\ncase $* in *ami-id) echo ami-0123456789;; *) echo token;; esac\n")
    fake.chmod(0o755)
    config = tmp_path / "ray_bootstrap_config.yaml"
    config.write_text(json.dumps(cluster))
    (line,) = (text for text in cluster["initialization_commands"] if "ami-id" in text)
    environment = {"HOME": str(tmp_path), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run(["bash", "-c", line], env=environment, check=True)
    nodes = json.loads(config.read_text())["available_node_types"].values()
    assert {node["node_config"]["ImageId"] for node in nodes} == {"ami-0123456789"}
    config.unlink()
    subprocess.run(["bash", "-c", line], env=environment, check=True)  # a worker has no such file


def test_what_a_job_uploads_holds_code_without_weights_data_and_runs(tmp_path):
    from ray._private.runtime_env.packaging import create_package

    checkout = tmp_path / "checkout"
    for name in ("dynamics/data/code.py", "checkpoints/anole/a.bin", "data/b.bin", "runs/c.bin"):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_bytes(bytes(2**20))
    (checkout / ".gitignore").write_bytes((ROOT / ".gitignore").read_bytes())
    package = tmp_path / "package.zip"
    create_package(str(checkout), package, include_gitignore=True, logger=logging.getLogger())
    assert files_of(package) == {".gitignore", "dynamics/data/code.py"}


def files_of(package: Path) -> set[str]:
    from zipfile import ZipFile

    with ZipFile(package) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}
