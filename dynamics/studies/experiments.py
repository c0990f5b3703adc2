"""What is measured: the arms of the study as units of work with their dependencies.

Every unit belongs to one seed. A seed films its own videos, so its labelled set, its pool and its
1,000 held-out scenes are its own; the default's seed 0, on whose scenes settings were chosen, is
not among them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from dynamics.core.config import LoopConfig
from dynamics.core.errors import UserError

FRESH_SEEDS = (101, 102, 103)
"""Nothing was ever chosen on their scenes."""

KEPT_FRACTION = 0.5
"""Of the top-fraction filters that are held against each other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyPlan:
    """How much is measured."""

    seeds: tuple[int, ...] = FRESH_SEEDS
    label_sizes: tuple[int, ...] = (256, 1024, 2048, 4096, 8192)
    """Labelled pairs of claim (a)."""
    best_of: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    """N of claim (c)."""
    temperatures: tuple[float, ...] = (1.0, 0.7)
    num_verified: int = 1000
    """Held-out scenes of claim (c)."""
    filters: bool = True
    """Hold the scores and rules against each other in round 1."""
    ablations: bool = True
    """Token weights, full fine-tuning, one joint adapter, a base from scratch."""

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise UserError("claims needs one seed or more, each once")


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """A piece of work that is done once; its folder exists = it is done."""

    seed: int
    name: str
    """``kind`` or ``kind/arm``, e.g. ``size/512``."""
    after: tuple[str, ...] = ()
    """Names of units of the same seed whose results it reads."""

    @property
    def kind(self) -> str:
        """What `dynamics.studies.run_experiment` looks up."""
        return self.name.partition("/")[0]

    @property
    def arm(self) -> str:
        """Which of the kind; empty when there is one only."""
        return self.name.partition("/")[2]


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

ABLATIONS = ("recognition_weights", "full", "joint", "from_scratch")


def units(plan: StudyPlan, cfg: LoopConfig) -> list[Unit]:
    """All units, in an order in which one process could run them.

    What the claims rest on comes first for all seeds, then what is held against it.
    """
    found = [unit for seed in plan.seeds for unit in _of_seed(plan, cfg, seed)]
    return sorted(found, key=lambda unit: unit.kind in _LATER)


_LATER = ("scores", "filter", "ablation")


def _of_seed(plan: StudyPlan, cfg: LoopConfig, seed: int) -> list[Unit]:
    def unit(name: str, *after: str) -> Unit:
        return Unit(seed=seed, name=name, after=after)

    found = [unit("data"), unit("loop", "data")]
    found += [
        # Of the FDP alone: claim (b) is about it. `dynamics evaluate RUN --controls` has both.
        unit(f"control/{arm}-fdp", "data")
        for arm in ("true_labels", "labelled_only")
    ]
    # The round-0 adapters are the fits at the configured size.
    found += [
        unit(f"size/{size}-{task}", "data")
        for size in plan.label_sizes
        if size != cfg.labelled.num_pairs
        for task in ("fdp", "idm")
    ]
    found += [unit(f"verify/{round_id}", "loop") for round_id in sorted({0, cfg.rounds})]
    found.append(unit("calibrate", "loop"))
    if plan.filters:
        found.append(unit("scores", "loop"))
        found += [unit(f"filter/{arm}", "scores") for arm in FILTER_ARMS]
    if plan.ablations:
        found += [
            unit(f"ablation/{arm}-{task}", "data")
            for arm in ABLATIONS
            for task in (("joint",) if arm == "joint" else ("fdp", "idm"))
            if (arm, task) != ("recognition_weights", "idm")
        ]
    return found


def ready(todo: Sequence[Unit], unfinished: set[tuple[int, str]]) -> list[Unit]:
    """Those of ``todo`` whose dependencies are all finished, in order."""
    return [
        unit for unit in todo if not any((unit.seed, name) in unfinished for name in unit.after)
    ]
