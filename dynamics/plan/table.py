"""The plan as tables for a terminal."""

from rich.console import Group
from rich.table import Table

from dynamics.plan import Plan

_GIB = 2**30


def plan_table(plan: Plan) -> Group:
    """Sizes, training, memory, hours and disk."""
    return Group(_sizes(plan), _training(plan), _memory(plan), _hours(plan), _disk(plan))


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
        f"memory per worker in GiB, {plan.num_workers} a task (estimate)",
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
    machine = plan.machine
    table = _table(
        f"hours at {100 * machine.utilisation:.0f} % of {machine.tflops:g} TFLOP/s (assumed; "
        "without evaluation)",
        "encode", "guard", "label", "train", "total",
    )  # fmt: skip
    found = plan.hours
    hours = (found.encode, found.guard, found.label, found.train, found.total)
    table.add_row(*(f"{one:.3g}" for one in hours))
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
