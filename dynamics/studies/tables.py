"""From the units' files to `Results`. Reads only; missing units leave their rows out."""

from collections.abc import Callable, Sequence

from dynamics.studies import best_of_n_tables as verification
from dynamics.studies import guard_checks as promotion
from dynamics.studies import label_tables as labels
from dynamics.studies.experiments import ABLATIONS
from dynamics.studies.outcomes import Arms
from dynamics.studies.results import (
    Check,
    Number,
    Results,
    Row,
    Strata,
    Table,
    difference,
    mean,
    share_of_gap,
)
from dynamics.studies.study import Study
from dynamics.training.loss import Task

_TASKS: tuple[Task, ...] = ("fdp", "idm")


def analyse(studies: Sequence[Study], date: str) -> Results:
    """All tables and checks.

    Args:
        studies: one per seed, of one config.
        date: of the analysis, ISO.
    """
    arms = Arms(studies)
    tables = {
        "ease": _ease(arms),
        "rounds": _rounds(arms),
        **labels.tables(arms),
        **verification.tables(studies),
        "ablations": _ablations(arms),
    }
    tables = {name: table for name, table in tables.items() if table.rows}
    first = studies[0]
    left_out = {"seed", "run_dir", "serve", "track", "cluster"}
    plan = {name: getattr(first.plan, name) for name in first.plan.__slots__}
    return Results(
        date=date,
        seeds=tuple(study.cfg.seed for study in studies),
        config_digest=first.cfg.model_copy(update={"seed": 0}).digest(),
        settings={"plan": plan, "config": first.cfg.model_dump(mode="json", exclude=left_out)},
        tables=tables,
        checks=tuple(_checks(arms, tables)),
    )


def _ease(arms: Arms) -> Table:
    rows: list[Row] = []
    for size in sorted({*arms.studies[0].plan.label_sizes, arms.studies[0].cfg.labelled.num_pairs}):
        fdp, idm = (arms.labelled(size, task) for task in _TASKS)
        rows += _ease_row(f"{size:,} labels", fdp, idm, arms.labelled(size, "fdp", "copy"))
    scratch = [arms.unit(f"ablation/from_scratch-{task}", task) for task in _TASKS]
    copies = arms.unit("ablation/from_scratch-fdp", "fdp", "copy")
    seed = arms.studies[0].cfg.labelled.num_pairs
    rows += _ease_row(f"{seed:,} labels, from scratch", scratch[0], scratch[1], copies)
    return Table(
        title="(a) Naming the action is easier than predicting the frame",
        note="Adapters on the pretrained base, the same steps whatever the number of labels. From "
        "scratch: the same network from random weights, all of them trained.",
        columns=("IDM", "FDP, greedy", "IDM - FDP", "FDP copies the input"),
        rows=tuple(rows),
    )


def _ease_row(
    name: str, fdp: Strata | None, idm: Strata | None, copies: Strata | None
) -> list[Row]:
    if fdp is None or idm is None or copies is None:
        return []
    cells = {
        "IDM": mean(idm, f"idm {name}"),
        "FDP, greedy": mean(fdp, f"fdp {name}"),
        "IDM - FDP": difference(idm, fdp, f"ease {name}"),
        "FDP copies the input": mean(copies, f"copies {name}"),
    }
    return [Row(name=name, cells=cells)]


def _rounds(arms: Arms) -> Table:
    rows: list[Row] = []
    floor, ceiling = (
        arms.unit(f"control/{a}-fdp", "fdp") for a in ("labelled_only", "true_labels")
    )
    previous: Strata | None = None
    for round_id in range(arms.rounds + 1):
        fdp, idm = arms.round(round_id, "fdp_greedy_success"), arms.round(round_id, "idm_correct")
        copies = arms.round(round_id, "fdp_copy")
        if fdp is None or idm is None or copies is None:
            break
        name = f"round {round_id}" + (": the labelled set" if round_id == 0 else "")
        cells = {
            "FDP, greedy": mean(fdp, f"{name} fdp"),
            "FDP copies the input": mean(copies, f"{name} copies"),
            "IDM": mean(idm, f"{name} idm"),
        }
        if previous is not None:
            cells["FDP, more than the round before"] = difference(fdp, previous, f"{name} step")
        if floor is not None and round_id == arms.rounds:
            cells["FDP, more than labelled set only"] = difference(fdp, floor, f"{name} gain")
        if floor is not None and ceiling is not None and round_id == arms.rounds:
            cells["share of the gap closed"] = share_of_gap(fdp, floor, ceiling, f"{name} gap")
        rows.append(Row(name=name, cells=cells))
        previous = fdp
    for arm, name in (
        ("labelled_only", "labelled set only, as many steps"),
        ("true_labels", "true labels"),
    ):
        cells = {}
        if (outcomes := arms.unit(f"control/{arm}-fdp", "fdp")) is not None:
            cells["FDP, greedy"] = mean(outcomes, f"{arm} fdp")
        if (copied := arms.unit(f"control/{arm}-fdp", "fdp", "copy")) is not None:
            cells["FDP copies the input"] = mean(copied, f"{arm} copies")
        rows += [Row(name=name, cells=cells)] if cells else []
    return Table(
        title="(b) Bootstrapping: round by round, against both controls",
        note="The controls take as many steps as round "
        f"{arms.rounds} has behind it: on the labelled set alone, and on seed and pool with the "
        "pool's true labels. The gap lies between them.",
        columns=(
            "FDP, greedy",
            "FDP copies the input",
            "IDM",
            "FDP, more than the round before",
            "FDP, more than labelled set only",
            "share of the gap closed",
        ),
        rows=tuple(rows),
    )


def _task(name: str) -> Task:
    return "idm" if name == "idm" else "fdp"


def _ablations(arms: Arms) -> Table:
    rows: list[Row] = []
    reference = {
        "fdp": arms.round(0, "fdp_greedy_success"),
        "idm": arms.round(0, "idm_correct"),
    }
    if reference["fdp"] is not None and reference["idm"] is not None:
        cells = {
            "FDP, greedy": mean(reference["fdp"], "ablation reference fdp"),
            "IDM": mean(reference["idm"], "ablation reference idm"),
        }
        rows.append(Row(name="as shipped: LoRA, one adapter a task", cells=cells))
    for arm in ABLATIONS:
        cells = {}
        for task, column in (("fdp", "FDP, greedy"), ("idm", "IDM")):
            unit = f"ablation/{arm}-{'joint' if arm == 'joint' else task}"
            outcomes, against = arms.unit(unit, _task(task)), reference[task]
            if outcomes is None or against is None:
                continue
            cells[column] = mean(outcomes, f"ablation {arm} {task}")
            more = difference(outcomes, against, f"ablation {arm} {task} more")
            cells[f"{column.partition(',')[0]}, more than as shipped"] = more
        rows += [Row(name=_ABLATION_NAMES[arm], cells=cells)] if cells else []
    return Table(
        title="Ablations of round 0",
        note="The labelled set, the same steps; one thing changed at a time.",
        columns=("FDP, greedy", "FDP, more than as shipped", "IDM", "IDM, more than as shipped"),
        rows=tuple(rows),
    )


_ABLATION_NAMES = {
    "recognition_weights": "recognition-weighted loss (the paper's)",
    "full": "all weights instead of LoRA",
    "joint": "one joint adapter, the steps of two",
    "from_scratch": "all weights, from random ones",
}


def _checks(arms: Arms, tables: dict[str, Table]) -> list[Check]:
    """The bars, each with the number that it was held against."""
    checks: list[Check] = []

    def ask(claim: str, asked: str, number: Number | None, holds: Callable[[Number], bool]) -> None:
        if number is None:
            return
        measured = f"{100 * number.value:.1f} [{100 * number.low:.1f}, {100 * number.high:.1f}]"
        checks.append(Check(claim=claim, asked=asked, measured=measured, holds=holds(number)))

    def cell(table: str, row: str, column: str) -> Number | None:
        return tables[table].cell(row, column) if table in tables else None

    size = f"{arms.studies[0].cfg.labelled.num_pairs:,} labels"
    last = f"round {arms.rounds}"
    ask(
        "(a) IDM against FDP at the seed's size",
        "20 points more",
        cell("ease", size, "IDM - FDP"),
        lambda n: n.value >= 0.2 and n.low > 0,
    )
    ask(
        "(b) share of the gap closed",
        "80 %",
        cell("rounds", last, "share of the gap closed"),
        lambda n: n.value >= 0.8,
    )
    for round_id in range(1, arms.rounds + 1):
        step = cell("rounds", f"round {round_id}", "FDP, more than the round before")
        ask(f"(b) round {round_id} against the one before", "no less", step, lambda n: n.value >= 0)
    ask(
        "(b) copies after the last round",
        "2 % at most",
        cell("rounds", last, "FDP copies the input"),
        lambda n: n.value <= 0.02,
    )
    for claim, asked, number, holds in verification.checks(arms.studies):
        ask(claim, asked, number, holds)
    return [*checks, *promotion.checks(arms.studies)]
