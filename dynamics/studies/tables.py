"""`Results` from the experiments' files; unfinished experiments leave their rows out."""

from collections.abc import Sequence

import numpy as np

from dynamics.evaluation.controls import SEEDED_AS
from dynamics.studies import best_of_n_tables, guard_checks, label_tables
from dynamics.studies.experiments import ABLATIONS, TASKS, ablation, control
from dynamics.studies.outcomes import Arms
from dynamics.studies.results import (
    NO_TRUTH,
    Check,
    Number,
    Results,
    Row,
    Strata,
    Table,
    checked,
    difference,
    mean,
    share_of_gap,
    statistic,
)
from dynamics.studies.study import Study


def analyse(studies: Sequence[Study], date: str) -> Results:
    """All tables and checks.

    Args:
        studies: one per seed, all with one config.
        date: ISO date of the analysis.
    """
    arms = Arms(studies)
    tables = {
        "ease": _ease(arms),
        "rounds": _rounds(arms),
        **label_tables.tables(arms),
        **best_of_n_tables.tables(studies),
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
        fdp, idm = (arms.labelled(size, task) for task in TASKS)
        rows += _ease_row(f"{size:,} labels", fdp, idm, arms.labelled(size, "fdp", "copy"))
    fdp, idm = (arms.fit(ablation("from_scratch", task), task) for task in TASKS)
    copies = arms.fit(ablation("from_scratch", "fdp"), "fdp", "copy")
    size = arms.studies[0].cfg.labelled.num_pairs
    rows += _ease_row(f"{size:,} labels, from scratch", fdp, idm, copies)
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
    if fdp is None or idm is None:
        return []
    cells = {"IDM": mean(idm, f"idm {name}"), "FDP, greedy": mean(fdp, f"fdp {name}")}
    if copies is not None:  # one measure for both, so that they can be compared
        cells["IDM - FDP"] = difference(idm, fdp, f"ease {name}")
        cells["FDP copies the input"] = mean(copies, f"copies {name}")
    return [Row(name=name, cells=cells)]


def _rounds(arms: Arms) -> Table:
    rows: list[Row] = []
    floor, ceiling = (arms.fit(control(arm), "fdp") for arm in ("labelled_only", "true_labels"))
    previous: Strata | None = None
    for round_id in range(arms.rounds + 1):
        fdp, idm = arms.round(round_id, "fdp_greedy_success"), arms.round(round_id, "idm_correct")
        copies = arms.round(round_id, "fdp_copy")
        if fdp is None or idm is None:
            break
        # Seeds the published intervals, with the labelled set's earlier name.
        name = f"round {round_id}" + (": the labelled seed" if round_id == 0 else "")
        cells = {
            "FDP, greedy": mean(fdp, f"{name} fdp"),
            "IDM": mean(idm, f"{name} idm"),
            **_copies(copies, f"{name} copies"),
        }
        if previous is not None:
            cells["FDP, more than the round before"] = difference(fdp, previous, f"{name} step")
        if floor is not None and round_id == arms.rounds:
            cells[_MORE_THAN_LABELS] = difference(fdp, floor, f"{name} gain")
        if floor is not None and ceiling is not None and round_id == arms.rounds:
            cells["share of the gap closed"] = share_of_gap(fdp, floor, ceiling, f"{name} gap")
        rows.append(Row(name=name.replace("labelled seed", "labelled set"), cells=cells))
        previous = fdp
    for arm, name, success in (
        ("labelled_only", "labelled set only, as many steps", floor),
        ("true_labels", "true labels", ceiling),
    ):
        copied, seeded = arms.fit(control(arm), "fdp", "copy"), SEEDED_AS.get(arm, arm)
        if success is not None:
            cells = {
                "FDP, greedy": mean(success, f"{seeded} fdp"),
                **_copies(copied, f"{seeded} copies"),
            }
            rows.append(Row(name=name, cells=cells))
    note = (
        f"The controls take as many steps as round {arms.rounds} has behind it: on the labelled "
        "set alone, and on it and the pool with the pool's true labels. The gap lies between them."
    )
    return Table(
        title="(b) Bootstrapping: round by round, against both controls",
        note=note if arms.has_truth else f"{NO_TRUTH} {note.partition(', and on')[0]}.",
        columns=(
            "FDP, greedy",
            "FDP copies the input",
            "IDM",
            "FDP, more than the round before",
            _MORE_THAN_LABELS,
            "share of the gap closed",
        ),
        rows=tuple(rows),
    )


def _copies(copies: Strata | None, name: str) -> dict[str, Number]:
    """The share of copies, where the domain tells one."""
    return {} if copies is None else {"FDP copies the input": mean(copies, name)}


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
    for arm, name in ABLATIONS.items():
        cells = {}
        for task, column in zip(TASKS, ("FDP, greedy", "IDM"), strict=True):
            outcomes, against = arms.fit(ablation(arm, task), task), reference[task]
            if outcomes is None or against is None:
                continue
            cells[column] = mean(outcomes, f"ablation {arm} {task}")
            more = difference(outcomes, against, f"ablation {arm} {task} more")
            cells[f"{column.partition(',')[0]}, more than as shipped"] = more
        rows += [Row(name=name, cells=cells)] if cells else []
    return Table(
        title="Ablations of round 0",
        note="The labelled set, the same steps; one thing changed at a time.",
        columns=("FDP, greedy", "FDP, more than as shipped", "IDM", "IDM, more than as shipped"),
        rows=tuple(rows) if len(rows) > 1 else (),  # nothing beside what is shipped
    )


def _checks(arms: Arms, tables: dict[str, Table]) -> list[Check]:
    """The bars of all claims, each with its measured number."""

    def cell(table: str, row: str, column: str) -> Number | None:
        return tables[table].cell(row, column) if table in tables else None

    size = f"{arms.studies[0].cfg.labelled.num_pairs:,} labels"
    last = f"round {arms.rounds}"
    checks = checked(
        "(a) IDM against FDP at the labelled set's size",
        "20 points more",
        cell("ease", size, "IDM - FDP"),
        lambda n: n.value >= 0.2 and n.low > 0,
    )
    checks += checked(
        "(b) share of the gap closed",
        "80 %",
        cell("rounds", last, "share of the gap closed"),
        lambda n: n.value >= 0.8,
    )
    for round_id in range(1, arms.rounds + 1):
        step = cell("rounds", f"round {round_id}", "FDP, more than the round before")
        claim = f"(b) round {round_id} against the one before"
        checks += checked(claim, "no less", step, lambda n: n.value >= 0)
    checks += checked(
        "(b) copies after the last round",
        "1.5 % at most",
        cell("rounds", last, "FDP copies the input"),
        lambda n: n.value <= 0.015,
    )
    checks += checked(
        "(b) labels of round 1 that are right, before the filter",
        "83 %",
        cell("labels", "round 1", "correct, all"),
        lambda n: n.value >= 0.83,
    )
    if not arms.has_truth:
        checks += _checks_without_truth(arms, cell("rounds", last, _MORE_THAN_LABELS))
    return [*checks, *best_of_n_tables.checks(arms.studies), *guard_checks.checks(arms.studies)]


_MORE_THAN_LABELS = "FDP, more than labelled set only"


def _checks_without_truth(arms: Arms, gain: Number | None) -> list[Check]:
    """Bars for a world whose rules nobody knows."""
    found = checked(
        "(b) FDP's changed codes, more than the labelled set alone gives",
        "beyond noise",
        gain,
        lambda n: n.low > 0,
    )
    idm, commonest = (arms.round(arms.rounds, name) for name in ("idm_correct", "majority_exact"))
    if idm is not None and commonest is not None:
        against = [np.stack(both, axis=1) for both in zip(idm, commonest, strict=True)]
        found += _twice("(a) IDM, more than twice what the commonest sentence gets", against)
    if (first := arms.action_first(arms.rounds)) is not None:
        found += _twice(
            "(b) true sentence is the likeliest, more than twice as often as by chance", first
        )
    return found


def _twice(claim: str, strata: Strata) -> list[Check]:
    """The check that the first column's mean is more than twice the second's, which may be 0."""
    more = statistic(strata, lambda m_R2: m_R2[:, 0] - 2 * m_R2[:, 1], claim)
    return checked(claim, "beyond noise", more, lambda n: n.low > 0)
