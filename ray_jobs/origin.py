"""Origin of a run: when, by which code and on which machine or cluster it was last continued."""

import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dynamics.core.config import LoopConfig
from ray_jobs.tracking import git_revision

_KIND = "accelerator_type:"
"""Before a GPU's name among the resources of a Ray node."""


def origin(cfg: LoopConfig) -> dict[str, Any]:
    """Date (UTC), commit or version, and the driver's hardware, until a cluster is joined."""
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "revision": git_revision(),
        "hardware": ", ".join(_hardware(cfg)),
    }


def cluster_hardware(nodes: Sequence[Mapping[str, Any]]) -> str:
    """Nodes, CPUs and GPUs of a cluster, of ``nodes`` as `ray.nodes` lists them."""
    found = [node["Resources"] for node in nodes]
    counts = {name: round(sum(one.get(name, 0) for one in found)) for name in ("CPU", "GPU")}
    counted = [
        f"{count:,} {what}{'' if count == 1 else 's'}"
        for what, count in {"node": len(found), **counts}.items()
    ]
    kinds = {name.removeprefix(_KIND) for one in found for name in one if name.startswith(_KIND)}
    return f"Ray cluster of {', '.join([*counted, *sorted(kinds)])}"


def _hardware(cfg: LoopConfig) -> list[str]:
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    parts = [f"{os.cpu_count()} cores{_processor()}", f"{memory_gb:.0f} GB memory"]
    if cfg.model.device == "cuda":
        from torch import cuda

        parts += [cuda.get_device_name(index) for index in range(cuda.device_count())]
    return parts


def _processor() -> str:
    """Name of the processor, as Linux knows it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f" ({names[0]})" if names else ""
