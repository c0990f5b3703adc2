"""The plan as tables for a terminal."""

from dataclasses import replace

from rich.console import Group
from rich.table import Table

from dynamics.core.progress import duration
from dynamics.plan import Plan
from dynamics.plan.hours import StageHours

_GIB = 2**30


def plan_table(plan: Plan) -> Group:
    """Machines, sizes, training, memory, hours, disk, needs; the last line is the verdict."""
    tables = (_cluster, _sizes, _training, _memory, _hours, _disk, _checks)
    return Group(*(make(plan) for make in tables), verdict(plan))


def verdict(plan: Plan) -> str:
    """One line: hours if all fits; else what does not, and the overrides with which it does."""
    where = plan.cluster.source
    if not plan.lacking:
        wall, gpus = _time(plan.wall), _amount(plan.gpu_hours)
        return f"fits {where}: {wall} of wall time, {gpus} GPU hours"
    stages = ", ".join(f"{one.what} ({one.where})" for one in plan.lacking)
    overrides = dict.fromkeys(override for one in plan.lacking for override in one.overrides)
    others = [f"{one.what}: {one.advice}" for one in plan.lacking if not one.overrides]
    helps = [f"with {' '.join(overrides)} it does"] if overrides else []
    return "; ".join([f"does not fit {where}: {stages}", *helps, *others])


def _cluster(plan: Plan) -> Table:
    table = _table(
        f"machines of {plan.cluster.source}", "node", "number", "cards", "GiB a card", "CPUs",
        "RAM", "disk",
    )  # fmt: skip
    for node in plan.cluster.nodes:
        cards = f"{node.cards} x {node.card.name}" if node.card else str(node.cards or "-")
        table.add_row(
            node.name, str(node.count), cards, _known(node.card.memory if node.card else None),
            str(node.cpus), _known(node.ram), _known(node.disk),
        )  # fmt: skip
    return table


def _known(num_bytes: int | None) -> str:
    return "?" if num_bytes is None else _gib(num_bytes)


def _sizes(plan: Plan) -> Table:
    sizes = plan.sizes
    table = _table(f"{plan.name}: parameters ({sizes.source})", "what", "count")
    table.add_row("base", f"{sizes.total:,}")
    table.add_row("trained per task", f"{sizes.trainable:,}")
    table.add_row("share", f"{100 * sizes.trainable / sizes.total:.2f} %")
    table.add_row("codes a frame", f"{sizes.image_tokens:,}")
    return table


def _training(plan: Plan) -> Table:
    table = _table(
        "training", "task", "tokens/row", "rows/step", "tokens/step", "steps", "GFLOP/token"
    )
    for task, one in plan.tasks.items():
        table.add_row(
            task.upper(),
            f"{one.tokens_per_row:,}",
            f"{one.rows_per_step:,}",
            f"{one.tokens_per_step:,}",
            f"{one.steps:,}",
            f"{one.flops_per_token / 1e9:.3g}",
        )
    return table


def _memory(plan: Plan) -> Table:
    table = _table(
        f"memory per worker of {plan.workers} in GiB, training (estimate)",
        "task", "strategy", "weights", "gradients", "optimizer", "activations", "total",
    )  # fmt: skip
    for task, found in plan.memory.items():
        for strategy, one in found.items():
            parts = (one.weights, one.gradients, one.optimizer, one.activations, one.total)
            mark = " *" if strategy == plan.strategy else ""
            name = strategy.removeprefix("deepspeed_") + mark
            table.add_row(task.upper(), name, *(_gib(part) for part in parts))
    table.caption = "* the run's own"
    return table


def _hours(plan: Plan) -> Table:
    speed = plan.speed
    each = "core" if speed.bandwidth is None else "card"
    table = _table(
        f"time at {100 * speed.utilisation:.0f} % of {speed.tflops:.3g} TFLOP/s a {each}",
        "stage", "workers", "GPUs", "wall", "GPU hours",
    )  # fmt: skip
    for name, stage in plan.hours.items():
        if name != "train":
            table.add_row(name, *_cells(stage))
            continue
        for schedule, wall in plan.training.items():
            mark = " *" if schedule == plan.schedule else ""
            one = replace(stage, wall=wall)
            table.add_row(f"train, {_SCHEDULES[schedule]}{mark}", *_cells(one))
    table.add_row("total", "", "", _time(plan.wall), _amount(plan.gpu_hours))
    table.caption = "* the run's own (train.schedule), which counts"
    return table


_SCHEDULES = {"together": "side by side", "sequence": "one after the other"}


def _cells(stage: StageHours) -> tuple[str, ...]:
    return str(stage.workers), f"{stage.gpus:g}", _time(stage.wall), _amount(stage.gpu_hours)


def _time(hours: float) -> str:
    return "-" if hours == float("inf") else duration(3600 * hours)


def _amount(hours: float) -> str:
    if hours == float("inf"):
        return "-"
    return f"{hours:,.3g}" if hours < 1000 else f"{hours:,.0f}"


def _checks(plan: Plan) -> Table:
    table = _table("needs in GiB", "what", "where", "needs", "there is", "", "at most")
    for one in plan.checks:
        known = "" if one.have is None else "fits" if one.fits else "TOO LITTLE"
        most = "\n".join(one.overrides) or ("" if one.fits else one.advice)
        table.add_row(one.what, one.where, _gib(one.need), _known(one.have), known, most)
    return table


def _disk(plan: Plan) -> Table:
    table = _table("disk in GiB", *plan.disk_bytes, "total")
    parts = list(plan.disk_bytes.values())
    table.add_row(*(_gib(one) for one in (*parts, sum(parts))))
    return table


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / _GIB:,.3g}" if num_bytes < 100 * _GIB else f"{num_bytes / _GIB:,.0f}"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", caption_justify="left")
    for number, name in enumerate(columns):
        table.add_column(name, justify="left" if number == 0 else "right")
    return table
