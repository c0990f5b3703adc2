"""What more labels bring: the models of all labels against those of a quarter of them.

Rounds teach the FDP with labels that the IDM writes: an FDP to which more labels bring nothing
gains nothing from rounds. On three worlds they brought 30 to 60 % of what the last three quarters
of the labels had brought (docs/LOG.md, 2026-11-28).
"""

from dataclasses import dataclass
from typing import get_args

import pyarrow as pa

from dynamics.core.config import LoopConfig
from dynamics.core.progress import Progress
from dynamics.core.records import TRANSITION_SCHEMA, TRUTH_SCHEMA, DataRefs, Estimate
from dynamics.core.seeds import numpy_rng
from dynamics.evaluation.comparison import gains
from dynamics.evaluation.controls import control_job, evaluate_control, fit_side_by_side
from dynamics.evaluation.metrics import summarise
from dynamics.storage.pairs import TableWriter, stored_rows
from dynamics.storage.run_folder import TRAINING_SET, RunFolder
from dynamics.storage.tables import read_table
from dynamics.training.loss import Task

MOST_HELDOUT = 500
"""Held-out pairs that are asked, the first ones: a share is known to +-4 points."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MoreLabels:
    """A quarter of the labels against all of them."""

    num_labels: tuple[int, int]
    """Of the quarter, of all."""
    arms: tuple[dict[str, Estimate], dict[str, Estimate]]
    """Metrics of the held-out pairs, without best of N, from a quarter and from all."""
    gain: dict[str, Estimate]
    """Per metric of `comparison.COMPARED`, all less a quarter, paired over pairs: the FDP's first,
    then the IDM's."""


def measure_more_labels(
    cfg: LoopConfig, folder: RunFolder, data: DataRefs, progress: Progress
) -> MoreLabels:
    """Fit IDM and FDP on a quarter and on all of the labels, for the steps of round 0.

    Writes into ``more_labels`` of the run folder: four fits, two at a time.
    """
    rows = pa.concat_tables(stored_rows(data.labelled, TRANSITION_SCHEMA, folder.codes))
    drawn = numpy_rng(cfg.seed, "more labels").permutation(rows.num_rows)
    taught = {"quarter": rows.take(drawn[: max(1, rows.num_rows // 4)]), "all": rows}
    places = {arm: folder.root / "more_labels" / arm for arm in taught}
    for arm, place in places.items():
        writer = TableWriter(place / TRAINING_SET, TRANSITION_SCHEMA, folder.codes)
        writer.append(taught[arm])
        writer.finish()
    jobs = [
        control_job(cfg, arm, task, cfg.train.of(task).first_steps, place)
        for arm, place in places.items()
        for task in get_args(Task)
    ]
    fit_side_by_side(jobs, progress)
    heldout = read_table(data.heldout, TRANSITION_SCHEMA).slice(0, MOST_HELDOUT)
    truth = None if data.truth is None else read_table(data.truth, TRUTH_SCHEMA)
    results = []
    for arm, place in places.items():
        progress(0, 0, f"evaluate the models of {taught[arm].num_rows:,} labels")
        results.append(evaluate_control(cfg, place, heldout, truth, round_id=0))
    quarter, whole = results
    return MoreLabels(
        num_labels=(taught["quarter"].num_rows, rows.num_rows),
        arms=(summarise(quarter), summarise(whole)),
        gain=gains(quarter, whole),
    )
