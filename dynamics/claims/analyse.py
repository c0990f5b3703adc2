"""From the units' files to `Results`. Reads only; missing units leave their rows out."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dynamics.claims import verification
from dynamics.claims.plan import ABLATIONS, FILTER_ARMS, KEPT_FRACTION
from dynamics.claims.results import (
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
from dynamics.claims.work import OUTCOME_SCHEMA, Study, filter_of
from dynamics.evaluation.calibration import auroc, expected_calibration_error
from dynamics.evaluation.items import items_schema
from dynamics.evaluation.summary import right_labels
from dynamics.labelling.confidence import SCORES
from dynamics.labelling.filter import decide
from dynamics.ledger.store import Ledger
from dynamics.records import LABEL_SCHEMA, TRUTH_SCHEMA
from dynamics.tables import read_table
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
        "labels": _labels(arms),
        "filters": _filters(arms),
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


class Arms:
    """Outcomes on the held-out scenes by arm: one array per seed, scenes in one fixed order."""

    def __init__(self, studies: Sequence[Study]) -> None:
        self.studies = studies

    @property
    def rounds(self) -> int:
        """The last round."""
        return self.studies[0].cfg.rounds

    def has(self, unit: str) -> bool:
        """Whether every seed has finished a unit."""
        return all(study.is_done(unit) for study in self.studies)

    def unit(self, name: str, task: Task, column: str = "success") -> Strata | None:
        """A unit's outcomes; None until every seed has them."""
        if not self.has(name):
            return None
        paths = [study.unit(name) / f"{task}.parquet" for study in self.studies]
        return [_column(read_table(path, OUTCOME_SCHEMA), column) for path in paths]

    def round(self, round_id: int, column: str) -> Strata | None:
        """A column of a round's evaluation table; None until every seed has it."""
        if not self.has("loop"):
            return None
        tables = []
        for study in self.studies:
            path = study.run.round(round_id) / "items.parquet"
            tables.append(read_table(path, items_schema(study.cfg.evaluate.best_of)))
        return [_column(table, column) for table in tables]

    def labelled(self, size: int, task: Task, column: str = "success") -> Strata | None:
        """Fits on ``size`` labels; round 0 is the one at the configured size."""
        if size != self.studies[0].cfg.labelled.num_seed:
            return self.unit(f"size/{size}-{task}", task, column)
        names = {"success": "fdp_greedy_success", "copy": "fdp_copy"}
        return self.round(0, names[column] if task == "fdp" else "idm_correct")


def _column(table: pa.Table, column: str) -> NDArray[np.float64]:
    ordered = table.sort_by("pair_id")
    return np.array(ordered[column].to_pylist(), dtype=np.float64)


def _row(name: str, cells: dict[str, Callable[[], Number]], needed: Sequence[Any]) -> list[Row]:
    """The row, or none while an arm that it needs is missing."""
    if any(arm is None for arm in needed):
        return []
    return [Row(name=name, cells={column: cell() for column, cell in cells.items()})]


def _ease(arms: Arms) -> Table:
    rows: list[Row] = []
    for size in sorted({*arms.studies[0].plan.label_sizes, arms.studies[0].cfg.labelled.num_seed}):
        fdp, idm = (arms.labelled(size, task) for task in _TASKS)
        rows += _ease_row(f"{size:,} labels", fdp, idm, arms.labelled(size, "fdp", "copy"))
    scratch = [arms.unit(f"ablation/from_scratch-{task}", task) for task in _TASKS]
    copies = arms.unit("ablation/from_scratch-fdp", "fdp", "copy")
    seed = arms.studies[0].cfg.labelled.num_seed
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
    floor, ceiling = (arms.unit(f"control/{a}-fdp", "fdp") for a in ("seed_only", "true_labels"))
    previous: Strata | None = None
    for round_id in range(arms.rounds + 1):
        fdp, idm = arms.round(round_id, "fdp_greedy_success"), arms.round(round_id, "idm_correct")
        copies = arms.round(round_id, "fdp_copy")
        if fdp is None or idm is None or copies is None:
            break
        name = f"round {round_id}" + (": the labelled seed" if round_id == 0 else "")
        cells = {
            "FDP, greedy": mean(fdp, f"{name} fdp"),
            "FDP copies the input": mean(copies, f"{name} copies"),
            "IDM": mean(idm, f"{name} idm"),
        }
        if previous is not None:
            cells["FDP, more than the round before"] = difference(fdp, previous, f"{name} step")
        if floor is not None and round_id == arms.rounds:
            cells["FDP, more than seed only"] = difference(fdp, floor, f"{name} gain")
        if floor is not None and ceiling is not None and round_id == arms.rounds:
            cells["share of the gap closed"] = share_of_gap(fdp, floor, ceiling, f"{name} gap")
        rows.append(Row(name=name, cells=cells))
        previous = fdp
    for arm, name in (("seed_only", "seed only, as many steps"), ("true_labels", "true labels")):
        cells = {}
        for task, column in (("fdp", "FDP, greedy"), ("idm", "IDM")):
            if (outcomes := arms.unit(f"control/{arm}-{task}", _task(task))) is not None:
                cells[column] = mean(outcomes, f"{arm} {task}")
        if (copied := arms.unit(f"control/{arm}-fdp", "fdp", "copy")) is not None:
            cells["FDP copies the input"] = mean(copied, f"{arm} copies")
        rows += [Row(name=name, cells=cells)] if cells else []
    return Table(
        title="(b) Bootstrapping: round by round, against both controls",
        note="The controls take as many steps as round "
        f"{arms.rounds} has behind it: on the labelled seed alone, and on seed and pool with the "
        "pool's true labels. The gap lies between them.",
        columns=(
            "FDP, greedy",
            "FDP copies the input",
            "IDM",
            "FDP, more than the round before",
            "FDP, more than seed only",
            "share of the gap closed",
        ),
        rows=tuple(rows),
    )


def _task(name: str) -> Task:
    return "idm" if name == "idm" else "fdp"


def _labels(arms: Arms) -> Table:
    """What the loop's labels were worth."""
    rows: list[Row] = []
    for round_id in range(1, arms.rounds + 1) if arms.has("loop") else ():
        known, kept = [], []
        for study in arms.studies:
            ledger = Ledger(study.run.ledger)
            labels = ledger.labels(round_id)
            decisions = ledger.decisions(round_id)
            accepted = dict(
                zip(
                    decisions["label_id"].to_pylist(),
                    decisions["accepted"].to_pylist(),
                    strict=True,
                )
            )
            taken = np.array([accepted[one] for one in labels["label_id"].to_pylist()])
            right = _right(study, labels)
            known.append(right)
            kept.append(right[taken])
        name = f"round {round_id}"
        cells = {"right, all": mean(known, f"labels {name}")}
        if all(map(len, kept)):
            cells["right, kept"] = mean(kept, f"kept labels {name}")
        rows.append(Row(name=name, cells=cells))
    return Table(
        title="(b) The labels of every round",
        note="Right: carried out in the simulator the sentence leads to the next state.",
        columns=("right, all", "right, kept"),
        rows=tuple(rows),
    )


def _right(study: Study, labels: pa.Table) -> NDArray[np.float64]:
    """1 where a label is right; labels of pairs without a truth are wrong: they have no action."""
    truth = read_table(study.run.data / "truth.parquet", TRUTH_SCHEMA)
    return np.array([verdict is True for verdict in right_labels(labels, truth)], dtype=np.float64)


def _filters(arms: Arms) -> Table:
    rows: list[Row] = []
    everything = arms.unit("filter/all", "fdp")
    for arm in FILTER_ARMS if everything is not None else ():
        outcomes = arms.unit(f"filter/{arm}", "fdp")
        if outcomes is None or everything is None:
            continue
        cells = {"FDP, greedy": mean(outcomes, f"filter {arm}")}
        if arm != "all":
            cells["more than all labels"] = difference(outcomes, everything, f"filter {arm} all")
        rows.append(Row(name=arm, cells=cells | _label_quality(arms, arm)))
    return Table(
        title="(b) Filters in round 1",
        note="The IDM's greedy labels of the pool, scored and cut offline; then one FDP each, "
        f"from round 0's, the same steps. A score keeps its best {KEPT_FRACTION:.0%}. ECE: how "
        "far exp(mean log-prob), exp(sum log-prob), exp(min log-prob) or the share of agreeing "
        "samples is from the share that is right.",
        columns=("FDP, greedy", "more than all labels", "labels right", "AUROC", "ECE"),
        rows=tuple(rows),
    )


def _label_quality(arms: Arms, arm: str) -> dict[str, Number]:
    """Precision of what an arm keeps, and how its score ranks and is calibrated."""
    if arm in ("nothing", "true_labels"):
        return {}
    kept, scored = [], []
    for study in arms.studies:
        labels = read_table(study.unit("scores") / "labels.parquet", LABEL_SCHEMA)
        right = _right(study, labels)
        decisions = decide(labels, filter_of(arm, labels.num_rows))
        taken = pc.index_in(
            decisions.filter(decisions["accepted"])["label_id"],
            value_set=labels["label_id"].combine_chunks(),
        )
        kept.append(right[taken.to_numpy()])
        if arm in SCORES:
            score = labels[f"score_{arm}"].to_numpy()
            ended = np.isfinite(score)
            scored.append((score[ended], right[ended]))
    cells = {"labels right": mean(kept, f"precision {arm}")} if all(map(len, kept)) else {}
    if scored and all({*right.tolist()} == {0.0, 1.0} for _, right in scored):
        cells["AUROC"] = _by_seed([auroc(score, right) for score, right in scored])
    if scored and arm != "fdp_likelihood" and all(len(right) for _, right in scored):
        confident = [(_confidence(arm, score), right) for score, right in scored]
        errors = [expected_calibration_error(score, right).value for score, right in confident]
        cells["ECE"] = _by_seed(errors)
    return cells


def _confidence(arm: str, score: NDArray[np.float32]) -> NDArray[np.float64]:
    """A score as a probability of being right."""
    value = np.asarray(score, dtype=np.float64)
    return np.clip(value if arm == "agreement" else np.exp(value), 0, 1)


def _by_seed(values: Sequence[float]) -> Number:
    """A statistic of 12,000 labels: what varies is the seed, so its range is the interval."""
    low, high = min(values), max(values)
    return Number(value=float(np.mean(values)), low=low, high=high, seeds=tuple(values))


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
        note="The labelled seed, the same steps; one thing changed at a time.",
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

    size = f"{arms.studies[0].cfg.labelled.num_seed:,} labels"
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
    return checks
