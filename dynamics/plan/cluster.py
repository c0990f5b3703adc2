"""Machines of a cluster: cards, CPUs, RAM, disk, from its YAML, a live Ray or instance types."""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml

from dynamics.core.config_file import parse_yaml
from dynamics.core.errors import UserError
from dynamics.plan.sizes import PUBLISHED

GIB = 2**30
_CARD = "accelerator_type:"
"""Start of the resource by which Ray names a node's card."""
_RAM_PER_CPU = {"c": 2, "m": 4, "r": 8, "highcpu": 1, "standard": 4, "highmem": 8}
"""GiB a vCPU of instance types without cards, by their kind: AWS's letter, Google's word."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A GPU."""

    name: str
    memory: int
    """Bytes."""
    tflops: float
    """Speed in dense bfloat16 products by its data sheet, 10^12 operations a second."""
    bandwidth: float
    """Bytes of its memory a second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """Machines of one kind; None = unknown."""

    name: str
    count: int
    """The most of them."""
    cpus: int
    cards: int = 0
    """Cards of one machine."""
    card: Card | None = None
    ram: int | None = None
    """Bytes."""
    disk: int | None = None
    """Bytes where run folders and data lie by default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Machines that a run may use; the head, which runs the driver, is the first."""

    source: str
    nodes: tuple[Node, ...]

    @property
    def cards(self) -> int:
        """All cards."""
        return sum(node.count * node.cards for node in self.nodes)

    @property
    def cpus(self) -> int:
        """All CPUs."""
        return sum(node.count * node.cpus for node in self.nodes)

    @property
    def card(self) -> Card | None:
        """The card with the least memory: work may land on any."""
        known = [node.card for node in self.nodes if node.card is not None]
        return min(known, key=lambda card: card.memory, default=None)


@cache
def _machines() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((PUBLISHED / "machines.yaml").read_text())
    return found


def card(name: str) -> Card | None:
    """A card by its name, None for one that is not known."""
    if name not in _machines()["cards"]:
        return None
    mib, tflops, gb = _machines()["cards"][name]
    return Card(name=name, memory=mib * 2**20, tflops=tflops, bandwidth=gb * 1e9)


def read_cluster(text: str) -> Cluster | None:
    """The cluster of a Ray YAML file, or of instance types (``p5.4xlarge``, ``4xg6e.12xlarge``).

    None for any other text, which may be the address of a live Ray.

    Raises:
        UserError: the file describes no cluster, or an instance type in it is not known.
    """
    if Path(text).is_file():
        return _of_file(Path(text))
    found = re.fullmatch(r"(?:(\d+)x)?(.+)", text)
    assert found is not None
    count, name = found[1] or "1", found[2]
    if name not in _machines()["instances"]:
        return None
    return Cluster(source=text, nodes=(_instance(name, int(count)),))


def _instance(name: str, count: int) -> Node:
    card_name, cards, cpus, ram, disk = _machines()["instances"][name]
    return Node(
        name=name, count=count, cpus=cpus, cards=cards, card=card(card_name),
        ram=ram * GIB, disk=disk * 10**9 or None,
    )  # fmt: skip


def _of_file(path: Path) -> Cluster:
    try:
        tree = parse_yaml(path.read_bytes())
        kinds: dict[str, Any] = tree["available_node_types"]
        head = kinds[tree["head_node_type"]]
    except ValueError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from error
    except (TypeError, KeyError) as error:
        raise UserError(
            f"{path} names no machines (available_node_types, head_node_type); for machines of "
            "your own start Ray on them and give its address"
        ) from error
    nodes = [_of_kind(path, name, kind, kind is head) for name, kind in kinds.items()]
    nodes.sort(key=lambda node: node.name != tree["head_node_type"])
    return Cluster(source=str(path), nodes=tuple(node for node in nodes if node.count))


def _of_kind(path: Path, name: str, kind: Mapping[str, Any], is_head: bool) -> Node:
    config = kind.get("node_config", {})
    azure = config.get("azure_arm_parameters", {})
    machine = str(
        config.get("InstanceType") or config.get("machineType") or azure.get("vmSize") or ""
    ).rpartition("/")[2]
    count = 1 if is_head else int(kind.get("max_workers", 0))
    if machine in _machines()["instances"]:
        node = replace(_instance(machine, count), name=name)
    else:
        node = Node(name=name, count=count, cpus=0, ram=_ram(machine))
    node = _with_resources(node, kind.get("resources", {}))
    if not node.cpus or (node.cards and node.card is None):
        known = ", ".join(_machines()["cards"])
        raise UserError(
            f"{path}: {name}: {machine or 'its instance type'} is not known; name what it has "
            f"under resources, e.g. {{CPU: 8, GPU: 1, memory: {64 * GIB}, '{_CARD}L4': 1}}, one of "
            f"{known}"
        )
    return replace(node, disk=_attached(config) or node.disk)


def _ram(machine: str) -> int | None:
    """RAM of an instance type without cards, by the rules of its name."""
    if found := re.match(r"([cmr])\d\w*\.(\d*)x?large", machine):
        cpus = 4 * int(found[2] or 1) if "xlarge" in machine else 2
        return _RAM_PER_CPU[found[1]] * cpus * GIB
    if found := re.search(r"-(highcpu|standard|highmem)-(\d+)$", machine):
        return _RAM_PER_CPU[found[1]] * int(found[2]) * GIB
    return None


def _with_resources(node: Node, resources: Mapping[str, Any]) -> Node:
    """The node with what its resources say, as Ray counts them."""
    names = [key.removeprefix(_CARD) for key in resources if key.startswith(_CARD)]
    # Ray names a sized card twice: A100 and A100-80G.
    named = [found for name in sorted(names, key=len) if (found := card(name)) is not None]
    return replace(
        node,
        cpus=int(resources.get("CPU", node.cpus)),
        cards=int(resources.get("GPU", node.cards)),
        card=named[-1] if named else node.card,
        ram=int(resources.get("memory", node.ram or 0)) or None,
    )


def _attached(config: Mapping[str, Any]) -> int | None:
    """Bytes of the disks that a node's configuration asks for."""
    aws = [one.get("Ebs", {}).get("VolumeSize", 0) for one in config.get("BlockDeviceMappings", [])]
    google = [
        int(one.get("initializeParams", {}).get("diskSizeGb", 0)) for one in config.get("disks", [])
    ]
    return sum([*aws, *google]) * GIB or None


def live_cluster(address: str, found: Iterable[Mapping[str, Any]]) -> Cluster:
    """The cluster of a live Ray, from the resources of its nodes (`ray_jobs.nodes`), head first."""
    kinds: dict[Node, int] = {}
    for resources in found:
        # Ray keeps a part of the RAM for its object store.
        ram = resources.get("memory", 0) + resources.get("object_store_memory", 0)
        node = Node(name="node", count=1, cpus=0)
        node = _with_resources(node, {**resources, "memory": ram})
        kinds[node] = kinds.get(node, 0) + 1
    nodes = [
        replace(node, name=f"node {number}", count=count)
        for number, (node, count) in enumerate(kinds.items(), start=1)
    ]
    return Cluster(source=address, nodes=tuple(nodes))


def this_machine() -> Cluster:
    """The machine that this runs on."""
    ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    disk = os.statvfs(".")
    node = Node(
        name="here", count=1, cpus=os.cpu_count() or 1, ram=ram,
        disk=disk.f_bavail * disk.f_frsize,
    )  # fmt: skip
    if torch.cuda.is_available():
        shown = torch.cuda.get_device_properties(0)
        own = _nearest(shown.name.replace(" ", "-"), shown.total_memory)
        node = replace(node, cards=torch.cuda.device_count(), card=own)
    return Cluster(source="this machine", nodes=(node,))


def _nearest(shown: str, memory: int) -> Card:
    """A card by the driver's name of it; an unknown one is as fast as the nearest in size."""
    cards = [found for name in _machines()["cards"] if (found := card(name)) is not None]
    named = [one for one in cards if re.sub("-(40G|80G|NVL)$", "", one.name) in shown]
    nearest = min(named or cards, key=lambda one: abs(one.memory - memory))
    return replace(nearest, name=nearest.name if named else shown, memory=memory)
