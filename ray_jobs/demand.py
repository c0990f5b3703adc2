"""Work that finds no room: what it needs, against what the nodes of the cluster have."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ray
from ray import PlacementGroupID
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray._private.state import available_resources_per_node
from ray.experimental.internal_kv import _internal_kv_get
from ray.util.placement_group import (
    PlacementGroup,
    placement_group_table,
    remove_placement_group,
)

PATIENCE_S = 45.0
"""Time without room after which work says what it waits for, and ends where waiting is vain."""


def missing(resources: Mapping[str, float], count: int) -> str | None:
    """What the cluster lacks to hold ``count`` workers; None when waiting can help.

    Waiting helps where empty nodes would hold them, and where an autoscaler may start more nodes.

    Args:
        resources: what each worker takes, e.g. ``{"CPU": 1, "GPU": 0.5}``.
        count: workers that must run at the same time.
    """
    nodes = _nodes()
    if grows(nodes, _autoscaler()):
        return None
    return lack(resources, count, [node["Resources"] for node in nodes])


def missing_gpus(wanted: Mapping[float, int]) -> str | None:
    """As `missing`, for workers of several kinds: how many take how many GPUs each."""
    nodes = _nodes()
    if grows(nodes, _autoscaler()):
        return None
    return lack_gpus(wanted, [int(node["Resources"].get("GPU", 0)) for node in nodes])


def short(resources: Mapping[str, float], count: int) -> str | None:
    """What the nodes lack that are up now, also where an autoscaler may start more."""
    nodes = _nodes()
    line = lack(resources, count, [node["Resources"] for node in nodes])
    return (
        f"{line}; the autoscaler may add nodes" if line and not missing(resources, count) else line
    )


def waiting(resources: Mapping[str, float], count: int) -> str | None:
    """What ``count`` workers that have not started wait for; None when there is room now."""
    if line := short(resources, count):
        return line
    free = room(resources, available_resources_per_node().values())  # type: ignore[no-untyped-call]
    if free >= count:
        return None
    return f"needs {_workers(resources, count)}; other work leaves room for {free}"


def release() -> None:
    """Give back the resources that this job holds in placement groups.

    Ray Train (2.60) leaves those of a worker group that failed while it started, and they would
    last as long as the job.
    """
    job = ray.get_runtime_context().get_job_id()
    for name, group in placement_group_table().items():
        # The last bytes of a group's id are its job's.
        if name.endswith(job) and group["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(name))))


def lack(
    resources: Mapping[str, float], count: int, nodes: Sequence[Mapping[str, float]]
) -> str | None:
    """The line of `missing` for nodes that have these resources; None when they have room."""
    found = room(resources, nodes)
    if found >= count:
        return None
    kinds = Counter(_amounts({name: node.get(name, 0.0) for name in resources}) for node in nodes)
    have = ", ".join(f"{times} with {kind}" for kind, times in sorted(kinds.items()))
    return f"needs {_workers(resources, count)}; the nodes have room for {found}: {have}"


def lack_gpus(wanted: Mapping[float, int], cards: Sequence[int]) -> str | None:
    """The line of `missing_gpus` for nodes with these numbers of cards; None when all have room.

    A worker's cards are on one node, and less than one is a share of one card. The largest are
    placed first, each on the first node that has room.
    """
    free = [[1.0] * number for number in cards]
    wanted = Counter({gpus: count for gpus, count in wanted.items() if gpus})
    for gpus in sorted(wanted.elements(), reverse=True):
        share = min(gpus, 1.0)
        held = [[at for at, left in enumerate(node) if left >= share - 1e-9] for node in free]
        needed = math.ceil(gpus)
        node = next((number for number, found in enumerate(held) if len(found) >= needed), None)
        if node is None:
            kinds = " + ".join(f"{count} x {gpus:g} GPU" for gpus, count in sorted(wanted.items()))
            return f"needs {kinds}; the nodes have {', '.join(map(str, cards)) or 'no'} GPUs"
        for card in held[node][:needed]:
            free[node][card] -= share
    return None


def room(resources: Mapping[str, float], nodes: Iterable[Mapping[str, float]]) -> int:
    """Workers that fit on nodes which have these resources.

    Less than one GPU is a share of one card, so that cards hold 0.6 once, not 1.67 times.
    """
    return sum(
        min(
            int(node.get(name, 0.0)) * int(1 / need)
            if name == "GPU" and need < 1
            else int(node.get(name, 0.0) / need)
            for name, need in resources.items()
            if need
        )
        for node in nodes
    )


def grows(nodes: Iterable[Mapping[str, Any]], autoscaler: Mapping[str, Any]) -> bool:
    """True where an autoscaler starts nodes.

    Args:
        nodes: of ``ray.nodes()``; where KubeRay's autoscaler runs, each names its group.
        autoscaler: the report of Ray's own autoscaler. One that runs without a cluster.yaml only
            reports nodes, and makes up a kind of ``node_<id>`` for each.
    """
    kinds = autoscaler.get("active_nodes", {})
    return any(not kind.startswith("node_") for kind in kinds) or any(
        "ray.io/node-group" in node["Labels"] for node in nodes
    )


def _nodes() -> list[dict[str, Any]]:
    known = ray.nodes()  # type: ignore[no-untyped-call]
    return [node for node in known if node["Alive"]]


def _autoscaler() -> dict[str, Any]:
    status = _internal_kv_get(DEBUG_AUTOSCALING_STATUS)
    report: dict[str, Any] = json.loads(status or "{}").get("autoscaler_report") or {}
    return report


def _workers(resources: Mapping[str, float], count: int) -> str:
    return f"{count} x ({_amounts(resources)})"


def _amounts(resources: Mapping[str, float]) -> str:
    return " + ".join(f"{amount:g} {name}" for name, amount in sorted(resources.items()))
