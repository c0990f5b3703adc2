from functools import cache
from itertools import pairwise, product

import numpy as np
import pyarrow as pa
import pytest

from dynamics.core.config import EvaluateConfig, LoopConfig
from dynamics.core.domain import DOMAINS, load_domain
from dynamics.core.seeds import numpy_rng
from dynamics.evaluation.foresight import NUM_CHOICES, Foresight, Possible, Task
from dynamics.evaluation.heldout import evaluate_heldout
from dynamics.evaluation.metrics import ROLLOUT_STEPS, summarise
from dynamics.evaluation.probes import Sentences
from dynamics.inference.decoder import Candidates
from dynamics.storage.tables import codes_matrix
from dynamics.tabletop.domain import Tabletop
from dynamics.tabletop.scene import Scene
from tests.fakes import WORLD, CellTokenizer, ScriptedFDP, ScriptedIDM, filmed, perform

PAIRS, TRUTH = filmed(40)
CFG = LoopConfig(world=WORLD, evaluate=EvaluateConfig(best_of=(), batch_size=16))
DOMAIN = load_domain(CFG)
SENTENCES = Sentences(filmed(600, start=1000)[0]["action"].to_pylist(), DOMAIN).wordings
POSSIBLE = Possible(SENTENCES, DOMAIN)
LISTS = ("counterfactual_success", "counterfactual_copy", "rollout_success", "beam_rollout_success")
COLUMNS = (*LISTS, "plan_regret", "random_plan_regret")


class Deaf:
    """Draws one and the same change, whatever the sentence says."""

    images = CellTokenizer()

    def generate(self, source_BL, actions, sampling, *, seeds=()):
        codes = np.repeat(np.asarray(source_BL)[:, None], sampling.num_samples, axis=1)
        codes[..., 0] = 1
        zeros = np.zeros(codes.shape[:2])
        return Candidates(codes, zeros, zeros)


class Sighted(ScriptedFDP):
    """Greedy frames are right for some sentences, else copies; samples as the greedy frame."""

    def __init__(self) -> None:
        super().__init__(skill=0.0, sure=lambda action: "p" not in action)


COPIER = ScriptedFDP(skill=0.0, sure=lambda action: False)


@cache
def results() -> pa.Table:
    return evaluate_heldout(PAIRS, TRUTH, ScriptedIDM(), ScriptedFDP(), CFG, 0, 0)


def fill(fdp, *, rows=range(0, 40, 2), truth=TRUTH, round_id=1, cfg=CFG) -> pa.Table:
    foresight = Foresight(ScriptedIDM(), fdp, SENTENCES, truth, cfg, round_id)
    return foresight.fill(results(), PAIRS, rows)


def tasks(rows=range(0, 40, 2)) -> list[Task]:
    sources, states = codes_matrix(PAIRS, "source_codes"), TRUTH["source_state"].to_pylist()
    names = PAIRS["pair_id"].to_pylist()
    rngs = [numpy_rng(CFG.seed, names[row], "foresight") for row in rows]
    return [POSSIBLE.task(sources[r], states[r], g, 0) for r, g in zip(rows, rngs, strict=True)]


LONG = [task for task in tasks() if len(task.path) == ROLLOUT_STEPS]
"""Some tables are empty before."""


def known(items: pa.Table, name: str) -> list:
    return [one for one in items[name].to_pylist() if one is not None]


def test_an_fdp_that_asks_the_simulator_is_right_in_everything() -> None:
    items = fill(ScriptedFDP(skill=1.0))
    assert known(items, "counterfactual_success") == [[True, True]] * 20
    assert known(items, "counterfactual_copy") == [[False, False]] * 20
    for name in ("rollout_success", "beam_rollout_success"):
        assert known(items, name) == [[True] * ROLLOUT_STEPS] * len(LONG)
    assert set(known(items, "plan_regret")) == {0.0}
    assert np.mean(known(items, "random_plan_regret")) > 0.5


def test_an_fdp_that_ignores_its_sentence_follows_no_pair() -> None:
    items = fill(Deaf())
    assert len(known(items, "counterfactual_success")) == 20
    assert not any(map(all, known(items, "counterfactual_success")))
    assert summarise(items)["eval/counterfactual_both"].value == 0


def test_an_fdp_that_copies_plans_as_well_as_chance() -> None:
    items = fill(COPIER)
    assert known(items, "counterfactual_copy") == [[True, True]] * 20
    assert known(items, "rollout_success") == [[False] * ROLLOUT_STEPS] * len(LONG)
    assert known(items, "plan_regret") == known(items, "random_plan_regret")


def test_tasks_are_possible_and_goals_two_actions_away() -> None:
    assert len(LONG) > 15
    for task in tasks():
        ends = [DOMAIN.outcome(step.sentence, task.state) for step in task.pair]
        assert ends == [step.state for step in task.pair]
        assert len({*ends, task.state}) == 3
        walked = [task.state, *(step.state for step in task.path)]
        for step, (before, after) in zip(task.path, pairwise(walked), strict=True):
            assert DOMAIN.outcome(step.sentence, before) == after != before
        assert len(task.choices) == len({step.state for step in task.choices}) == NUM_CHOICES
        assert task.goal in task.ends
        assert task.goal not in {task.state, *(step.state for step in task.choices)}


def test_types_of_actions_are_drawn_equally_often() -> None:
    asked = tasks(range(40))
    drawn = [DOMAIN.kind(step.sentence) for task in asked for step in (*task.pair, *task.path)]
    shares = {kind: drawn.count(kind) / len(drawn) for kind in set(drawn)}
    assert len(shares) == 6
    assert min(shares.values()) > 0.1


def imagined(codes: tuple[int, ...], sentence: str) -> tuple[int, ...]:
    """What `Sighted` draws."""
    return codes if "p" in sentence else perform(codes, sentence) or codes


def test_rollouts_are_those_of_brute_force() -> None:
    found = known(fill(Sighted()), "rollout_success")
    for task, right in zip(LONG, found, strict=True):
        drawn = true = tuple(task.source)
        verdicts = []
        for step in task.path:
            drawn, true = imagined(drawn, step.sentence), perform(true, step.sentence)
            verdicts.append(drawn == true)
        assert right == [all(verdicts[:num]) for num in range(1, ROLLOUT_STEPS + 1)]
    assert 0 < sum(one[1] for one in found) < len(LONG)


def test_regret_is_that_of_brute_force() -> None:
    items, images = fill(Sighted()), CellTokenizer()
    found = (known(items, name) for name in COLUMNS[-2:])
    for task, regret, random in zip(tasks(), *found, strict=True):
        goal = images.decode(np.array([Scene.from_text(task.goal).cells])).astype(float)
        away, reached = [], []
        for first, second in product([step.sentence for step in task.choices], repeat=2):
            last = imagined(imagined(tuple(task.source), first), second)
            away.append(np.abs(images.decode(np.array([last])) - goal).mean())
            end = perform(perform(tuple(task.source), first), second)
            reached.append(end == Scene.from_text(task.goal).cells)
        nearest = np.isclose(away, min(away))
        assert regret == pytest.approx(1 - np.mean(np.array(reached)[nearest]), abs=1e-6)
        assert random == pytest.approx(1 - np.mean(reached), abs=1e-6)
    assert 0 < np.mean(known(items, "plan_regret")) < np.mean(known(items, "random_plan_regret"))


def test_a_beam_finds_what_one_candidate_misses() -> None:
    metrics = summarise(fill(ScriptedFDP(skill=0.5, sure=lambda action: False)))
    for step in range(1, ROLLOUT_STEPS + 1):
        assert metrics[f"eval/rollout_{step}"].value == 0
    assert metrics["eval/beam_rollout_1"].value > 0.8
    assert metrics["eval/beam_rollout_6"].value > 0.4


def test_every_round_is_asked_the_same_and_a_part_of_the_table_as_the_whole() -> None:
    fdp = Sighted()
    whole = fill(fdp)
    assert fill(fdp, round_id=2).equals(whole)
    odd = fill(fdp, rows=[6])
    for name in COLUMNS:
        assert odd[name][6] == whole[name][6]
        assert odd[name].null_count == 39
    assert whole.drop_columns(list(COLUMNS)).equals(results().drop_columns(list(COLUMNS)))


def test_without_truth_nothing_is_measured() -> None:
    items = fill(ScriptedFDP(), truth=None)
    assert all(items[name].null_count == 40 for name in COLUMNS)
    assert not [name for name in summarise(items) if "rollout" in name or "plan" in name]
    assert fill(ScriptedFDP(), truth=TRUTH.slice(20))["plan_regret"].null_count == 30


class Unfilmed(Tabletop):
    """The rules without a camera."""

    simulator = None  # type: ignore[assignment]


def test_a_domain_that_draws_no_picture_has_all_but_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DOMAINS, "unfilmed", f"{__name__}:Unfilmed")
    items = fill(ScriptedFDP(skill=1.0), cfg=CFG.model_copy(update={"domain": "unfilmed"}))
    assert known(items, "rollout_success") == [[True] * ROLLOUT_STEPS] * len(LONG)
    assert items["plan_regret"].null_count == 40


def test_a_source_where_little_is_possible_is_asked_what_is_left() -> None:
    lonely = Possible(["remove the red ring", "slide the red ring left"], DOMAIN)
    state = Scene(3, (0, 0, 2, *[0] * 6)).to_text()
    task = lonely.task(np.zeros(9, np.int64), state, np.random.default_rng(0), 0)
    assert len(task.pair) == 2
    assert len(task.path) < ROLLOUT_STEPS
    assert task.goal is None  # removed either way


def test_metrics_are_the_means_over_sources() -> None:
    items = fill(Sighted())
    metrics = summarise(items)
    both = [all(one) for one in known(items, "counterfactual_success")]
    assert metrics["eval/counterfactual_both"].value == pytest.approx(np.mean(both))
    each = np.mean(known(items, "counterfactual_success"))
    assert metrics["eval/counterfactual_each"].value == pytest.approx(each)
    third = np.mean([one[2] for one in known(items, "rollout_success")])
    assert metrics["eval/rollout_3"].value == pytest.approx(third)
    regret = np.mean(known(items, "plan_regret"))
    assert metrics["eval/plan_regret"].value == pytest.approx(regret, abs=1e-6)
    assert metrics["eval/plan_regret"].num_items == 20
