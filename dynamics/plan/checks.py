"""A run's needs against the machines: what does not fit, and the override that makes it fit."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, get_args

from dynamics.core.config import LoopConfig
from dynamics.core.places import StorePath
from dynamics.plan.cluster import GIB, Cluster, Node
from dynamics.plan.disk import disk_bytes
from dynamics.plan.flops import task_plan
from dynamics.plan.hours import workers_of
from dynamics.plan.memory import Stage, Strategy, inference_memory, training_memory
from dynamics.plan.sizes import Sizes
from dynamics.training.loss import Task

PROCESS_BYTES = GIB
"""RAM of a worker or driver without its model: Python, torch, CUDA's host side, Arrow."""
_ROW_BYTES = 2 * 1024
"""RAM of the driver for a pair of the pool while its labels are merged: 110 MB for 60,000."""
_ITEM_BYTES = 32 * 2**20
"""The largest item of a stream: a unit of frames."""
_ITEMS_OF_ACTOR = 4
"""Items of a stream that Ray holds for an actor: one in work, the next ones, one result."""
_RAY_STORE = 0.3
"""Share of the RAM that Ray keeps for its object store."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A need in bytes, and what there is for it."""

    what: str
    where: str
    need: int
    have: int | None
    """None = unknown, not checked."""
    overrides: tuple[str, ...] = ()
    """Settings with the largest values that fit."""
    advice: str = "a larger machine"
    """What to change where no setting helps."""

    @property
    def fits(self) -> bool:
        """True also where nothing is known."""
        return self.have is None or self.need <= self.have


def checks(cfg: LoopConfig, sizes: Sizes, cluster: Cluster) -> list[Check]:
    """Every need of the run against the machines of the cluster."""
    return [*_gpus(cfg, sizes, cluster), *_machines(cfg, sizes, cluster)]


def with_value(cfg: LoopConfig, key: str, value: Any) -> LoopConfig:
    """The config with another value of ``section.key``, which is valid."""
    section, name = key.split(".")
    inner = getattr(cfg, section).model_copy(update={name: value})
    return cfg.model_copy(update={section: inner})


def _gpus(cfg: LoopConfig, sizes: Sizes, cluster: Cluster) -> Iterator[Check]:
    """Memory of a GPU, stage by stage."""
    if cfg.model.device != "cuda":
        return
    card = cluster.card
    name = "no GPU" if card is None else card.name
    for stage in get_args(Stage):
        if stage == "serve" and not cfg.serve.enabled:
            continue
        _, gpus = workers_of(cfg, stage, cluster)
        room = 0 if card is None else round(card.memory * min(1.0, gpus))
        need, overrides = (
            _training(cfg, sizes, cluster, room)
            if stage == "train"
            else (inference_memory(cfg, sizes, stage, room), ())
        )
        if not gpus and card is not None:
            overrides = (f"{_GPU_KEYS[stage]}=1",)
        yield Check(
            what=stage, where=name, need=need, have=room, overrides=overrides,
            advice=_ADVICE[stage],
        )  # fmt: skip


_GPU_KEYS: dict[Stage, str] = {
    "ingest": "ingest.num_gpus_per_actor",
    "label": "label.num_gpus_per_actor",
    "train": "train.num_gpus_per_worker",
    "evaluate": "label.num_gpus_per_actor",
    "serve": "serve.num_gpus_per_replica",
}
_ADVICE: dict[Stage, str] = {
    "ingest": "a larger card",
    "label": "a larger card",
    "train": "more workers, or a larger card",
    "evaluate": "fewer samples in evaluate.best_of, or a larger card",
    "serve": "fewer serve.num_samples, or serve.enabled=false",
}


def _training(
    cfg: LoopConfig, sizes: Sizes, cluster: Cluster, room: int
) -> tuple[int, tuple[str, ...]]:
    """Bytes of the larger task, and the overrides that let most rows through at a time.

    The run's own strategy first, then those that share more, then gradient checkpointing, which
    computes a third more.
    """
    workers = max(1, workers_of(cfg, "train", cluster)[0])

    def need(one: LoopConfig, strategy: Strategy) -> int:
        plans = [task_plan(one, sizes, task, workers) for task in get_args(Task)]
        return max(training_memory(one, sizes, p, strategy, workers).total for p in plans)

    own: Strategy = cfg.train.strategy
    most = max(cfg.train.of(task).batch_size for task in get_args(Task))
    strategies = list(dict.fromkeys([own, "fsdp2", "deepspeed_zero3"])) if workers > 1 else [own]
    options = [(strategy, cfg.train.gradient_checkpointing) for strategy in strategies]
    if not cfg.train.gradient_checkpointing:
        options += [(strategy, True) for strategy in strategies]
    for strategy, again in options:
        base = with_value(cfg, "train.gradient_checkpointing", again)

        def fits(rows: int, base: LoopConfig = base, strategy: Strategy = strategy) -> bool:
            return need(with_value(base, "train.micro_batch_rows", rows), strategy) <= room

        if (found := _largest(most, fits)) is None:
            continue
        overrides = [f"train.micro_batch_rows={found}"]
        if strategy != own:
            overrides.append(f"train.strategy={strategy}")
        if again != cfg.train.gradient_checkpointing:
            overrides.append("train.gradient_checkpointing=true")
        return need(cfg, own), tuple(overrides)
    return need(cfg, own), ()


def _largest(most: int, fits: Callable[[int], bool]) -> int | None:
    """The largest number up to ``most`` that fits, where less needs less; None if 1 does not."""
    if not fits(1):
        return None
    low, high = 1, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _machines(cfg: LoopConfig, sizes: Sizes, cluster: Cluster) -> Iterator[Check]:
    """RAM, object store and disk of the head, and of every kind of node that works."""
    head = cluster.nodes[0]
    folder = sum(disk_bytes(cfg, sizes).values())
    in_store = isinstance(cfg.run_dir, StorePath)
    base = sizes.weight_bytes * sizes.total
    for node in dict.fromkeys([head, *cluster.nodes]):
        alone = len(cluster.nodes) == 1 and node.count == 1
        works = alone or node is not head or bool(node.cards)
        ram = PROCESS_BYTES + cfg.pool.most_pairs * _ROW_BYTES if node is head else 0
        actors = _actors(cfg, node, cluster) if works else 0
        ram += actors * _process_bytes(cfg, sizes)
        store = (actors * _ITEMS_OF_ACTOR + node.cpus * works) * _ITEM_BYTES
        share = 1.0 if alone else 1 - _RAY_STORE
        have = None if node.ram is None else round(node.ram * share)
        yield Check(what="RAM", where=node.name, need=ram, have=have)
        if works and not alone and node.ram is not None:
            room = round(node.ram * _RAY_STORE)
            yield Check(what="object store", where=node.name, need=store, have=room)
        disk = folder if node is head and not in_store else 0
        disk += folder + base if in_store and works else 0
        yield Check(
            what="disk", where=node.name, need=disk, have=node.disk,
            advice="a larger disk" + ("" if in_store else ", or run_dir in a store"),
        )  # fmt: skip


def _actors(cfg: LoopConfig, node: Node, cluster: Cluster) -> int:
    """The most processes of one stage that a node may get."""
    found = []
    stages: list[Stage] = ["ingest", "label", "train", "evaluate"]
    for stage in stages:
        workers, gpus = workers_of(cfg, stage, cluster)
        found.append(min(workers, round(node.cards / gpus) if gpus else workers))
    return max(found)


def _process_bytes(cfg: LoopConfig, sizes: Sizes) -> int:
    """RAM of a worker: the base passes through it on its way to a GPU, or stays in it."""
    weights = sizes.weight_bytes * sizes.total
    if cfg.model.device == "cuda":
        return PROCESS_BYTES + weights
    plans = [task_plan(cfg, sizes, task, cfg.train.num_workers) for task in get_args(Task)]
    training = max(
        training_memory(cfg, sizes, plan, "ddp", cfg.train.num_workers).total for plan in plans
    )
    stages: list[Stage] = ["label", "evaluate"]
    return PROCESS_BYTES + max(training, *(inference_memory(cfg, sizes, s) for s in stages))
