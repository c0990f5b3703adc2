"""The experiments of a study, each with the one whose results it reads.

Every seed of a study runs all of them. It films its own videos, so its labelled set, its pool and
its 1,000 held-out scenes are its own; the default's seed 0, on whose scenes settings were chosen,
is not among the seeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dynamics.core.config import LoopConfig
from dynamics.core.errors import UserError
from dynamics.training.batches import FitTask
from dynamics.training.loss import Task

FRESH_SEEDS = (141, 142, 143)
"""Seeds on whose scenes nothing was ever chosen."""

ACCEPTED_FRACTION = 0.5
"""Share of the labels that each compared top-fraction filter accepts."""

TASKS: tuple[Task, ...] = ("fdp", "idm")


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyPlan:
    """Extent of a study."""

    seeds: tuple[int, ...] = FRESH_SEEDS
    label_sizes: tuple[int, ...] = (256, 1024, 2048, 4096, 8192)
    """Labelled pairs of claim (a); those beyond the labelled set are the pool's, truly labelled."""
    best_of: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    """N of claim (c)."""
    temperatures: tuple[float, ...] = (1.0, 0.7)
    num_verified: int = 1000
    """Held-out scenes of claim (c)."""
    filters: bool = True
    """Compare the scores and rules in round 1."""
    ablations: bool = True
    """Token weights, full fine-tuning, one joint adapter, a base from scratch."""

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise UserError("a study needs one seed or more, each once")


QUICK = StudyPlan(
    seeds=FRESH_SEEDS[:1],
    label_sizes=(1024, 4096),
    best_of=(1, 2, 4, 8, 16),
    temperatures=(1.0,),
    num_verified=300,
    filters=False,
    ablations=False,
)
"""A look within a quarter of an hour: one seed and few arms; no evidence."""


def fitted_to(plan: StudyPlan, cfg: LoopConfig) -> StudyPlan:
    """The plan for a config, with label sizes in proportion to the config's labelled set.

    As they stand they are those of the tabletop's 4,096 labels. What is compared on the tabletop
    (sizes, filters, ablations) is not again elsewhere, where the question is which claims hold.
    """
    if cfg.domain not in (None, "tabletop") or cfg.labelled.dataset is not None:
        plan = replace(QUICK, seeds=plan.seeds, num_verified=plan.num_verified)
    labels = cfg.labelled.num_pairs
    sizes = {max(1, size * labels // 4096): None for size in plan.label_sizes}
    return replace(plan, label_sizes=tuple(sizes))


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """One fit or measurement, done once a seed, e.g. ``size/512-idm``."""

    kind: str
    """Key in `dynamics.studies.run_experiment.KINDS`."""
    arm: str = ""
    """Variant within the kind; empty when there is one only."""
    task: FitTask | None = None
    """Adapter that is fitted."""
    after: "Experiment | None" = None
    """Experiment whose results it reads."""

    @property
    def name(self) -> str:
        """Folder below ``experiments/``."""
        arm = f"{self.arm}-{self.task}" if self.task else self.arm
        return f"{self.kind}/{arm}" if arm else self.kind


DATA = Experiment(kind="data")
LOOP = Experiment(kind="loop", after=DATA)
CALIBRATE = Experiment(kind="calibrate", after=LOOP)
SCORES = Experiment(kind="scores", after=LOOP)

FILTER_ARMS = (
    "nothing",
    "all",
    "mean_logprob",
    "sum_logprob",
    "min_logprob",
    "agreement",
    "fdp_likelihood",
    "noisy_channel",
    "balanced_types",
    "true_labels",
)
"""Round-1 training sets from the IDM's greedy labels: none, all, the best half by a score, the
paper's class-stratified top K (by mean log-prob; filmed clips have no classes, so the classes are
the predicted action types), and all pairs with their true labels."""

ABLATIONS = {
    "recognition_weights": "recognition-weighted loss (the paper's)",
    "full": "all weights instead of LoRA",
    "joint": "one joint adapter, the steps of two",
    "from_scratch": "all weights, from random ones",
}
"""Arm to its row in the results."""


def control(arm: str) -> Experiment:
    """FDP fit of a control; `dynamics evaluate RUN --controls` fits the IDM, too."""
    return Experiment(kind="control", arm=arm, task="fdp", after=DATA)


def label_size(size: int, task: Task) -> Experiment:
    """Fit on ``size`` labelled pairs."""
    return Experiment(kind="size", arm=str(size), task=task, after=DATA)


def candidates(round_id: int) -> Experiment:
    """Candidate frames of a round's models."""
    return Experiment(kind="verify", arm=str(round_id), after=LOOP)


def label_filter(arm: str) -> Experiment:
    """FDP fit on what a `FILTER_ARMS` entry accepts."""
    return Experiment(kind="filter", arm=arm, task="fdp", after=SCORES)


def ablation(arm: str, task: Task) -> Experiment:
    """Fit of an `ABLATIONS` entry that ``task`` is measured on."""
    return Experiment(
        kind="ablation", arm=arm, task="joint" if arm == "joint" else task, after=DATA
    )


def schedule(plan: StudyPlan, cfg: LoopConfig) -> list[tuple[int, Experiment]]:
    """Seed and experiment of the whole study, in an order in which one process could run them.

    What the claims rest on comes first for all seeds, then what is compared with it. What needs
    the pool's true actions is left out where they are not known (``pool.path``).
    """
    has_truth = not cfg.pool.parts
    sizes = [
        size
        for size in plan.label_sizes
        if size < cfg.labelled.num_pairs or (has_truth and size != cfg.labelled.num_pairs)
    ]  # the round-0 adapters are the fits at the configured size
    claims = [
        DATA,
        LOOP,
        *([control("true_labels")] if has_truth else []),
        control("labelled_only"),
        *(label_size(size, task) for size in sizes for task in TASKS),
    ]
    if has_truth:
        claims += [*(candidates(round_id) for round_id in sorted({0, cfg.rounds})), CALIBRATE]
    compared = [SCORES, *map(label_filter, FILTER_ARMS)] if plan.filters and has_truth else []
    if plan.ablations:
        ablations = (ablation(arm, task) for arm in ABLATIONS for task in TASKS)
        # Recognition weighs image codes, which the IDM only reads. The joint fit serves both tasks.
        weighed_idm = ablation("recognition_weights", "idm")
        compared += [one for one in dict.fromkeys(ablations) if one != weighed_idm]
    return [(seed, one) for part in (claims, compared) for seed in plan.seeds for one in part]


def ready(
    todo: Sequence[tuple[int, Experiment]], unfinished: set[tuple[int, Experiment]]
) -> list[tuple[int, Experiment]]:
    """Experiments of ``todo`` that wait for nothing unfinished, in order."""
    return [(seed, one) for seed, one in todo if (seed, one.after) not in unfinished]
