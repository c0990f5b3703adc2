"""Measures that ask the domain what would happen: other sentences, several in a row, plans.

Some held-out sources are asked, evenly spaced, each with sentences of the labelled set that are
possible there: by the domain they lead to another state. They are drawn from (seed, pair), so every
round is asked the same. The source is held out; what a drawn sentence makes of it may have been
seen in training, in a world of few states.

B sources, L codes a frame, C choices of a planner, S steps.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, product
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from dynamics.core.config import LoopConfig
from dynamics.core.domain import Domain, Simulator, load_domain
from dynamics.core.seeds import derive_seed, numpy_rng
from dynamics.evaluation.metrics import HEADLINE_VERIFIER, ROLLOUT_STEPS
from dynamics.evaluation.state_reader import StateReader, states_by_pair
from dynamics.inference.best_of_n import ActionScorer
from dynamics.inference.fdp import ForwardDynamics
from dynamics.inference.rollout import collect, rollouts
from dynamics.inference.sampling import SamplingParams
from dynamics.inference.verifiers import Codes
from dynamics.storage.tables import codes_matrix, with_columns

Measure = Callable[[Sequence["Task"]], list[dict[str, Any]]]

NUM_SOURCES = 60
"""Held-out sources that are asked, or somewhat more."""
NUM_CHOICES = 4
"""Sentences that a planner makes its two-step plans of."""
NUM_CANDIDATES = 4
"""Candidates of each step of a roll-out that a verifier chooses from."""
BEAM = 2
"""Prefixes that the beam follows."""


COLUMNS = (
    "counterfactual_success",
    "counterfactual_copy",
    "rollout_success",
    "beam_rollout_success",
    "plan_regret",
    "random_plan_regret",
)
"""Columns of the held-out results that are filled here."""


@dataclass(frozen=True, slots=True)
class Step:
    """A sentence, and the state that it leads to."""

    sentence: str
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is asked about one source."""

    source: Codes
    """[L]"""
    state: str
    seed: int
    """Of the roll-out's draws."""
    pair: list[Step]
    """Two sentences with different ends; fewer where there are not two."""
    path: list[Step]
    """`ROLLOUT_STEPS` sentences in a row; fewer where nothing more is possible."""
    choices: list[Step]
    """At most `NUM_CHOICES` first steps of a planner, with different ends."""
    goal: str | None
    """A state that two of the choices in a row lead to and none alone; None without one."""
    ends: list[str | None]
    """The state after every plan, C * C of them, those of the first choice first."""


class Possible:
    """Draws sentences of a labelled set that are possible in a state, all types equally often."""

    def __init__(self, sentences: Sequence[str], domain: Domain) -> None:
        self._domain = domain
        by_kind: dict[str, list[str]] = {}
        for sentence in sentences:
            by_kind.setdefault(domain.kind(sentence), []).append(sentence)
        self._groups = [by_kind[kind] for kind in sorted(by_kind)]

    def task(self, source_L: Codes, state: str, rng: np.random.Generator, seed: int) -> Task:
        """What a source of a known state is asked."""
        choices = self._different(state, NUM_CHOICES, rng)
        ends = [
            self._domain.outcome(second.sentence, first.state)
            for first, second in product(choices, repeat=2)
        ]
        near = {state, *(step.state for step in choices)}
        goals = sorted({end for end in ends if end is not None} - near)
        return Task(
            source=source_L,
            state=state,
            seed=seed,
            pair=self._different(state, 2, rng),
            path=self._path(state, rng),
            choices=choices,
            goal=goals[rng.integers(len(goals))] if goals else None,
            ends=ends,
        )

    def _different(self, state: str, num: int, rng: np.random.Generator) -> list[Step]:
        found: list[Step] = []
        while len(found) < num:
            step = self._draw(state, rng, {state, *(one.state for one in found)})
            if step is None:
                break
            found.append(step)
        return found

    def _path(self, state: str, rng: np.random.Generator) -> list[Step]:
        found: list[Step] = []
        while len(found) < ROLLOUT_STEPS and (step := self._draw(state, rng, {state})):
            found.append(step)
            state = step.state
        return found

    def _draw(self, state: str, rng: np.random.Generator, but: Collection[str]) -> Step | None:
        """A sentence that leads from a state to one that is not in ``but``; None without one."""
        for group in rng.permutation(len(self._groups)):
            sentences = self._groups[group]
            for row in rng.permutation(len(sentences)):
                after = self._domain.outcome(sentences[row], state)
                if after is not None and after not in but:
                    return Step(sentences[row], after)
        return None


class Foresight:
    """Asks the models of a round; fills columns of `evaluation.heldout.results_schema`.

    Args:
        idm: verifies the roll-outs' candidates.
        fdp: of the round; brings the image tokenizer.
        sentences: of the labelled set, one of every meaning.
        truth: TRUTH_SCHEMA, the sources' states; None = nothing is measured.
        cfg: seed, domain, temperature and guidance.
        round_id: part of the seeds of draws.
    """

    def __init__(
        self,
        idm: ActionScorer,
        fdp: ForwardDynamics,
        sentences: Sequence[str],
        truth: pa.Table | None,
        cfg: LoopConfig,
        round_id: int,
    ) -> None:
        self._idm, self._fdp, self._cfg, self._round_id = idm, fdp, cfg, round_id
        self._domain = load_domain(cfg)
        self._possible = Possible(sentences, self._domain)
        self._states = {} if truth is None else states_by_pair(truth)
        self._reader = StateReader(fdp.images, self._domain)
        self._greedy = SamplingParams(guidance=cfg.evaluate.guidance)

    def fill(self, results: pa.Table, heldout: pa.Table, rows: Sequence[int]) -> pa.Table:
        """Results with what the sources of some rows were asked.

        Args:
            results: of the pairs, in their order.
            heldout: TRANSITION_SCHEMA.
            rows: of both; those whose state is unknown are left out.
        """
        pair_ids = heldout["pair_id"].to_pylist()
        asked = [row for row in rows if pair_ids[row] in self._states]
        tasks = {row: self._task(heldout.slice(row, 1)) for row in asked}
        found: list[dict[str, Any]] = [{} for _ in pair_ids]
        for fits, measure in self._measures():
            some = [row for row, task in tasks.items() if fits(task)]
            values = measure([tasks[row] for row in some]) if some else []
            for row, value in zip(some, values, strict=True):
                found[row] |= value
        return with_columns(results, {name: [one.get(name) for one in found] for name in COLUMNS})

    def _task(self, pair: pa.Table) -> Task:
        pair_id = pair["pair_id"][0].as_py()
        return self._possible.task(
            codes_matrix(pair, "source_codes")[0],
            self._states[pair_id][0],
            numpy_rng(self._cfg.seed, pair_id, "foresight"),
            derive_seed(self._cfg.seed, self._round_id, pair_id, "rollout"),
        )

    def _measures(self) -> list[tuple[Callable[[Task], bool], Measure]]:
        """Functions of the tasks that they can be asked of."""
        measures: list[tuple[Callable[[Task], bool], Measure]] = [
            (lambda task: len(task.pair) == 2, self._changed),
            (lambda task: len(task.path) == ROLLOUT_STEPS, self._rolled),
        ]
        if (simulator := self._domain.simulator) is not None:
            measures.append((lambda task: bool(task.goal), partial(self._planned, simulator)))
        return measures

    def _drawn(self, sources_BL: Codes, sentences: Sequence[str]) -> Codes:
        """Greedy frames."""
        return self._fdp.generate(sources_BL, sentences, self._greedy).codes[:, 0]

    def _changed(self, tasks: Sequence[Task]) -> list[dict[str, Any]]:
        sources_BL = np.repeat([task.source for task in tasks], 2, axis=0)
        steps = [step for task in tasks for step in task.pair]
        drawn_BL = self._drawn(sources_BL, [step.sentence for step in steps])
        right = self._reader.shows(drawn_BL, [step.state for step in steps])
        copied = self._reader.shows(drawn_BL, [task.state for task in tasks for _ in task.pair])
        return [
            {
                "counterfactual_success": right[at : at + 2],
                "counterfactual_copy": copied[at : at + 2],
            }
            for at in range(0, len(steps), 2)
        ]

    def _rolled(self, tasks: Sequence[Task]) -> list[dict[str, Any]]:
        sources_BL = np.stack([task.source for task in tasks])
        frames, greedy_SBL = sources_BL, []
        for step in range(ROLLOUT_STEPS):
            frames = self._drawn(frames, [task.path[step].sentence for task in tasks])
            greedy_SBL.append(frames)
        sampling = SamplingParams(
            num_samples=NUM_CANDIDATES,
            temperature=self._cfg.evaluate.temperature,
            guidance=self._cfg.evaluate.guidance,
        )
        beamed = rollouts(
            sources_BL,
            [[step.sentence for step in task.path] for task in tasks],
            self._idm,
            self._fdp,
            sampling,
            verifier=HEADLINE_VERIFIER,
            seeds=[task.seed for task in tasks],
            width=BEAM,
        )
        lengths = range(1, ROLLOUT_STEPS + 1)
        return [
            {
                "rollout_success": [self._all_right(greedy_SL[:num], task) for num in lengths],
                "beam_rollout_success": [
                    self._all_right(collect(task.source, beam.steps[:num]).frames[1:], task)
                    for num in lengths
                ],
            }
            for task, greedy_SL, beam in zip(tasks, np.stack(greedy_SBL, 1), beamed, strict=True)
        ]

    def _all_right(self, frames_SL: Codes, task: Task) -> bool | None:
        """True when the first S frames show the states of the path."""
        shown = self._reader.shows(frames_SL, [step.state for step in task.path[: len(frames_SL)]])
        return None if None in shown else all(shown)

    def _planned(self, simulator: Simulator, tasks: Sequence[Task]) -> list[dict[str, Any]]:
        sizes = np.array([len(task.choices) for task in tasks])
        said = [[step.sentence for step in task.choices] for task in tasks]
        sources_BL = np.stack([task.source for task in tasks])
        first = self._drawn(np.repeat(sources_BL, sizes, axis=0), list(chain(*said)))
        seconds = [sentence for one in said for _ in one for sentence in one]
        last = self._drawn(np.repeat(first, np.repeat(sizes, sizes), axis=0), seconds)
        found = []
        for task, last_PL in zip(tasks, np.split(last, np.cumsum(sizes**2)[:-1]), strict=True):
            goal = self._fdp.images.fit(Image.fromarray(simulator.picture(str(task.goal))))
            nearest_P = self._nearest(last_PL, goal)
            reached_P = np.array([end == task.goal for end in task.ends])
            found.append(
                {
                    "plan_regret": 1 - reached_P[nearest_P].mean(),
                    "random_plan_regret": 1 - reached_P.mean(),
                }
            )
        return found

    def _nearest(self, codes_PL: Codes, goal_HW3: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """[P]: the frames with the least mean absolute difference, several where they are equal."""
        unique_UL, index_P = np.unique(codes_PL, axis=0, return_inverse=True)
        frames_UHW3 = self._fdp.images.decode(unique_UL).astype(np.float32)
        away_U = np.abs(frames_UHW3 - goal_HW3).mean(axis=(1, 2, 3))
        nearest_P: NDArray[np.bool_] = (away_U == away_U.min())[index_P.reshape(-1)]
        return nearest_P
