"""The control models that a bootstrapped one is compared with.

* ``labelled_only``: the labelled set alone, for as many steps as the round's models had. It
  measures more training without more labels; beating round 0 alone would prove less.
* ``true_labels``: the labelled set plus the TRUE action sentences of the whole pool, as many
  steps. It stands for perfect pseudo-labels; only here does training read the pool's truth.
  Real video has none, so it goes without this arm.

The gain over the first is the result, and the share of the gap between the two that was closed.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, wait
from typing import Literal, get_args

import pyarrow as pa
import pyarrow.compute as pc

from dynamics.core.config import LoopConfig, TrainConfig
from dynamics.core.errors import UserError
from dynamics.core.places import Place
from dynamics.core.progress import Progress, silent
from dynamics.core.records import PAIR_SCHEMA, TRANSITION_SCHEMA, TRUTH_SCHEMA, DataRefs
from dynamics.core.seeds import derive_seed
from dynamics.evaluation.comparison import ControlReport, compare
from dynamics.evaluation.heldout import evaluate_heldout, results_schema
from dynamics.evaluation.worker_pool import worker_pool
from dynamics.inference.load import load_pair, model_ref
from dynamics.storage.pairs import TableWriter, stored_rows
from dynamics.storage.run_folder import (
    REPORT,
    RESULTS,
    TRAINING_SET,
    RunFolder,
    TrainingLog,
    write_json,
)
from dynamics.storage.tables import read_table, write_table
from dynamics.training.batches import FitJob
from dynamics.training.fit import WorkerContext, fit_adapter
from dynamics.training.loss import Task

Arm = Literal["labelled_only", "true_labels"]
SEEDED_AS = {"labelled_only": "seed_only"}
"""Arm to the earlier name that seeds its fits and intervals, published ones among them."""

RunFits = Callable[[Sequence[FitJob], Progress], None]


def fit_side_by_side(jobs: Sequence[FitJob], progress: Progress) -> None:
    """Fit adapters two at a time, each in a process of its own, the cores shared between them."""
    threads = max(1, (os.cpu_count() or 1) // 2)
    logs = [TrainingLog(job.out.with_name(f"{job.out.name}.jsonl")) for job in jobs]
    total = sum(job.steps for job in jobs)
    with worker_pool(2, threads) as pool:
        pending = {pool.submit(_fit, job, log) for job, log in zip(jobs, logs, strict=True)}
        while pending:
            progress(sum(log.last_step() for log in logs), total, f"train {len(jobs)} adapters")
            finished, pending = wait(pending, timeout=1.0, return_when=FIRST_EXCEPTION)
            for future in finished:
                future.result()


def _fit(job: FitJob, log: TrainingLog) -> None:
    fit_adapter(job, WorkerContext(report=lambda step, metrics, _: log.append(step, metrics)))


def run_controls(
    cfg: LoopConfig,
    run_dir: Place,
    data: DataRefs,
    round_id: int,
    *,
    run_fits: RunFits = fit_side_by_side,
    progress: Progress = silent,
) -> ControlReport:
    """Train and evaluate the controls of a finished round; writes ``controls/round-NN/``.

    Running it again continues: finished adapters and evaluations are read, not made again.

    Raises:
        UserError: the round is not finished.
    """
    run = RunFolder(run_dir)
    items_path = run.results(round_id)
    if not items_path.is_file():
        raise UserError(f"{items_path} does not exist; finish round {round_id} first")
    folder = run.controls(round_id)
    schema = results_schema(cfg.evaluate.best_of)
    items = {"round": read_table(items_path, schema)}
    truth = None if data.truth is None else read_table(data.truth, TRUTH_SCHEMA)
    arms: list[Arm] = ["labelled_only"]
    if truth is not None and not cfg.pool.parts:
        arms.append("true_labels")
    jobs, num_true = list[FitJob](), 0
    for arm in arms:
        known = truth if arm == "true_labels" else None
        num_true = _write_training_set(folder / arm / TRAINING_SET, data, known, run.codes)
        for task in get_args(Task):
            steps = control_steps(cfg.train.of(task), round_id)
            jobs.append(control_job(cfg, arm, task, steps, folder / arm))
    if missing := [job for job in jobs if not job.out.exists()]:
        run_fits(missing, progress)
    for arm in arms:
        out = folder / arm
        if not (out / RESULTS).is_file():
            progress(0, 0, f"evaluate {arm}")
            heldout = read_table(data.heldout, TRANSITION_SCHEMA)
            evaluated = evaluate_control(cfg, out, heldout, truth, round_id)
            write_table(out / RESULTS, evaluated, schema)
        items[arm] = read_table(out / RESULTS, schema)
    steps = control_steps(cfg.train.of("fdp"), round_id)
    report = compare(items, round_id, steps, num_pool=num_true)
    write_json(folder / REPORT, report.to_json())
    return report


def control_steps(train: TrainConfig, round_id: int) -> int:
    """Steps that the adapter of a round has behind it since the base; ``train`` is its task's."""
    if round_id == 0:
        return train.first_steps
    if train.init == "base":
        return train.round_steps
    return train.first_steps + round_id * train.round_steps


def label_truly(pool: pa.Table, truth: pa.Table) -> pa.Table:
    """The pool's pairs with their true actions: columns ``action`` and ``origin``, "truth".

    Pairs that the truth leaves out (they span no action or several) are left out.
    """
    rows = pc.index_in(pool["pair_id"], value_set=truth["pair_id"].combine_chunks())
    pairs = pool.filter(pc.is_valid(rows))
    actions = truth["action"].take(pc.drop_null(rows))
    origin = pa.array(["truth"] * pairs.num_rows, pa.string())
    return pairs.append_column("action", actions).append_column("origin", origin)


def _write_training_set(out: Place, data: DataRefs, truth: pa.Table | None, codes: Place) -> int:
    """Write the labelled set and what ``truth`` says of the pool; returns the pool's pairs."""
    writer, num_true = TableWriter(out, TRANSITION_SCHEMA, codes), 0
    for rows in stored_rows(data.labelled, TRANSITION_SCHEMA, codes):
        writer.append(rows)
    if truth is not None:
        for rows in stored_rows(data.pool, PAIR_SCHEMA, codes):
            writer.append(known := label_truly(rows, truth))
            num_true += known.num_rows
    writer.finish()
    return num_true


def control_job(cfg: LoopConfig, arm: str, task: Task, steps: int, out: Place) -> FitJob:
    """The fit of a task from the base on ``out``'s training set, into ``out``."""
    return FitJob(
        task=task,
        family=cfg.model.family,
        base=cfg.base_path(),
        device=cfg.model.device,
        transitions=out / TRAINING_SET,
        steps=steps,
        train=cfg.train,
        seed=derive_seed(cfg.seed, "control", SEEDED_AS.get(arm, arm), task),
        init_from=None,
        out=out / task,
        checkpoint_dir=out / f"{task}-checkpoints",
    )


def evaluate_control(
    cfg: LoopConfig, out: Place, heldout: pa.Table, truth: pa.Table | None, round_id: int
) -> pa.Table:
    """Held-out results, without best of N, of the two adapters that were fitted into ``out``."""
    idm, fdp = load_pair(model_ref(cfg.base_path(), out / "idm", out / "fdp"), cfg.model)
    return evaluate_heldout(heldout, truth, idm, fdp, cfg, round_id, with_best_of=0)
