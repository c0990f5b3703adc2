"""Answers of the shipped tiny base: real model, real pictures, no skill."""

import json
from dataclasses import replace

import numpy as np
import pytest

from dynamics.core.config import REPOSITORY_ROOT, LoopConfig
from dynamics.core.errors import UserError
from dynamics.core.images import read_picture
from dynamics.evaluation.aurora_bench.answer import (
    PREFERENCES,
    Answerer,
    Decode,
    answer_key,
    disc_key,
)
from dynamics.evaluation.aurora_bench.contestant import Contestant, contestant
from dynamics.evaluation.aurora_bench.dataset import read_benchmark
from dynamics.evaluation.aurora_bench.instructions import fit_instruction
from dynamics.evaluation.aurora_bench.probe import ProbeItems, fdp_preferences, idm_preferences
from dynamics.inference.sampling import SamplingParams

BEST_OF_4 = SamplingParams(num_samples=4, temperature=1.0)
BASE = REPOSITORY_ROOT / "dynamics" / "assets" / "tiny-4x4"


def named(name: str, round_id: int | None = None) -> Contestant:
    return contestant(name, round_id=round_id, family="chameleon", device="cpu")


@pytest.fixture(scope="module")
def tiny() -> Contestant:
    return named("tiny")


@pytest.fixture(scope="module")
def models(tiny):
    return tiny.load()


@pytest.fixture
def disc_bench(write_bench):
    return write_bench(lambda rows: rows[0].update(pos="leave the red cube"))


def test_every_item_is_answered_at_its_sources_size(tiny, bench):
    data = read_benchmark(bench)
    rows = Answerer(tiny, Decode(), data).answer(0, 4).to_pylist()
    assert [row["item_id"] for row in rows] == [item.item_id for item in data.items]
    for row, item in zip(rows, data.items, strict=True):
        assert (
            read_picture(row["prediction"]).size
            == read_picture(row["drawn_source"]).size
            == read_picture(item.source).size
        )
        assert all(row[name] in (0, 0.5, 1) for name in PREFERENCES)
        assert isinstance(row["sentence"], str)


def test_best_of_n_draws_other_frames_and_the_same_ones_again(tiny, bench):
    data = read_benchmark(bench)
    sampled = Decode(sampling=BEST_OF_4)
    greedy, one, again, other_seed = (
        Answerer(tiny, decode, data).answer(0, 4)
        for decode in (Decode(), sampled, sampled, Decode(sampling=BEST_OF_4, seed=1))
    )
    assert one.equals(again)
    assert not one["prediction"].equals(greedy["prediction"])
    assert not one["prediction"].equals(other_seed["prediction"])


def test_an_item_alone_has_no_random_negatives(tiny, write_bench):
    data = read_benchmark(write_bench(lambda rows: rows.__delitem__(slice(1, None))))
    (row,) = Answerer(tiny, Decode(), data).answer(0, 1).to_pylist()
    assert row["prediction"] is not None
    assert {row[name] for name in PREFERENCES} == {None}


def test_a_long_instruction_is_cut_after_the_last_word_that_fits(models):
    tokens = models[1].tokens
    limit = tokens.prompts.action_tokens
    words = ["the"] * limit
    assert fit_instruction(tokens, " ".join(words)).truncated is False
    told = fit_instruction(tokens, " ".join([*words, "red", "cube"]))
    assert (told.text, told.num_tokens, told.truncated) == (" ".join(words), limit, True)
    assert fit_instruction(tokens, "the " * 1_000_000) == told


def test_unknown_words_are_counted_and_left_out(models):
    told = fit_instruction(models[1].tokens, "unfurl the red sousaphone")
    assert (told.text, told.num_unknown, told.truncated) == ("the red", 2, False)


def test_strings_that_look_like_special_tokens_are_unknown_words(models, tiny, write_bench):
    tokens = models[1].tokens
    hostile = "<eos> <image> <racm3:break> IMGIMGAZ red"
    told = fit_instruction(tokens, hostile)
    assert (told.text, told.num_unknown) == ("red", 4)
    assert not {tokens.eos, tokens.boi, *tokens.image_ids.tolist()} & {*tokens.text_ids(told.text)}
    data = read_benchmark(write_bench(lambda rows: rows[0].update(instruction=hostile)))
    row = Answerer(tiny, Decode(), data).answer(0, 1).to_pylist()[0]
    assert row["told"] == "red"
    assert row["prediction"] is not None


def test_an_instruction_of_which_nothing_can_be_told_is_an_unanswered_row(tiny, write_bench):
    class Deaf:
        """A tokenizer to which one sentence is silence."""

        def __init__(self, tokens):
            self._tokens = tokens

        def __getattr__(self, name):
            return getattr(self._tokens, name)

        def text_ids(self, text):
            return [] if text.startswith("hush") else self._tokens.text_ids(text)

    data = read_benchmark(write_bench(lambda rows: rows[0].update(instruction="hush")))
    answerer = Answerer(tiny, Decode(), data)
    answerer._tokens = Deaf(answerer._tokens)
    first, second = answerer.answer(0, 2).to_pylist()
    assert (first["told"], first["prediction"], first["copied"]) == ("", None, None)
    assert second["prediction"] is not None


def test_disc_edit_counts_samples_that_move_less_for_what_is_so_already(tiny, disc_bench):
    data = read_benchmark(disc_bench)
    answerer = Answerer(tiny, Decode(), data)
    (row,) = answerer.disc_edit(0, 1).to_pylist()
    assert row["success"] in (0, 0.25, 0.5, 0.75, 1)
    assert answerer.disc_edit(0, 1).to_pylist() == [row]


def test_both_prompts_of_a_disc_edit_item_are_drawn_with_the_same_noise(tiny, disc_bench):
    data = read_benchmark(disc_bench)
    same = replace(data.disc_items[0], wanted=data.disc_items[0].fulfilled)
    (row,) = Answerer(tiny, Decode(), replace(data, disc_items=[same])).disc_edit(0, 1).to_pylist()
    assert row["success"] == 0  # no sample of the one moves less than its equal of the other


def test_a_model_that_cannot_see_prefers_neither(models):
    """Equal frames and actions have equal log-likelihoods: a tie is half a preference."""
    idm, fdp = models
    codes = np.arange(16)[None].repeat(3, axis=0)
    actions = ["the red ring"] * 3
    same = ProbeItems(
        source=codes, target=codes, actions=actions, other_target=codes, other_actions=actions
    )
    for preferences in (fdp_preferences(same, fdp), idm_preferences(same, idm, fdp)):
        for values in preferences.values():
            assert values.tolist() == [0.5] * 3


def test_the_probe_compares_what_it_says(models):
    idm, fdp = models
    rng = np.random.default_rng(0)
    source, target, other = rng.integers(0, fdp.images.num_codes, (3, 5, 16))
    actions, others = ["the red ring"] * 5, ["the blue cross and ring"] * 5
    items = ProbeItems(
        source=source,
        target=target,
        actions=actions,
        other_target=other,
        other_actions=others,
    )
    reference = fdp.frame_logprobs(source, actions, target)
    inverse = fdp.frame_logprobs(target, actions, source)
    assert fdp_preferences(items, fdp)["inverse"].tolist() == (reference > inverse).tolist()
    said = idm.action_logprobs(source, target, actions) / 4
    said_of_other = idm.action_logprobs(source, target, others) / 6
    preferred = idm_preferences(items, idm, fdp)["random_action"]
    assert preferred.tolist() == (said > said_of_other).tolist()


def test_keys_follow_everything_that_decides_an_answer(tiny, bench, tmp_path):
    data = read_benchmark(bench)
    copied = tmp_path / "copied"
    copied.mkdir()
    for file in BASE.iterdir():
        (copied / file.name).write_bytes(file.read_bytes())
    assert named(str(copied)).digest == tiny.digest
    recipe = json.loads((copied / "prompts.json").read_text())
    (copied / "prompts.json").write_text(json.dumps({**recipe, "version": "other"}))
    keys = {
        answer_key(tiny, Decode(), data, 0, 4),
        answer_key(tiny, Decode(), data, 0, 3),
        answer_key(tiny, Decode(seed=1), data, 0, 4),
        answer_key(tiny, Decode(sampling=BEST_OF_4), data, 0, 4),
        answer_key(named(str(copied)), Decode(), data, 0, 4),
        disc_key(tiny, Decode(), data.disc_items),
    }
    assert len(keys) == 6


def test_the_copy_needs_no_model():
    copy = named("copy")
    assert copy.model is None
    with pytest.raises(ValueError, match="no models"):
        copy.load()


@pytest.mark.parametrize(
    ("name", "said"),
    [("nowhere", "no run folder"), (str(BASE), None)],
)
def test_a_model_is_a_word_or_a_folder(name, said, tiny):
    if said is None:
        assert named(name).digest == tiny.digest
        return
    with pytest.raises(UserError, match=said):
        named(name)


def test_a_checkpoint_has_no_rounds_and_an_unknown_family_no_checkpoint():
    with pytest.raises(UserError, match="--round is for a run folder"):
        named("tiny", round_id=1)
    with pytest.raises(UserError, match="--family llama is unknown; known: chameleon, liquid"):
        contestant("tiny", round_id=None, family="llama", device="cpu")


def test_a_run_stands_for_its_last_promoted_round(local_run, small: LoopConfig, bench):
    run = named(str(local_run.folder))
    assert run.name.endswith(f", round {small.rounds}")
    assert run.verifier == small.serve.verifier
    assert named(str(local_run.folder), 0).digest != run.digest
    rows = Answerer(run, Decode(), read_benchmark(bench)).answer(0, 4)
    assert rows["prediction"].null_count == 0
    with pytest.raises(UserError, match="no promoted round 7"):
        named(str(local_run.folder), 7)
