"""What every engine that ``model.decoder`` may name must do."""

import json
import shutil
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import get_peft_model

from dynamics.core.config import LoraConfig, ModelConfig
from dynamics.core.errors import UserError
from dynamics.core.registry import imported
from dynamics.inference.decode import DynamicCacheDecoder
from dynamics.inference.decoder import (
    DECODERS,
    Candidates,
    Decoder,
    JoiningDecoder,
    Prompted,
)
from dynamics.inference.fdp import ForwardDynamics
from dynamics.inference.load import load_bare
from dynamics.inference.sampling import GREEDY, SamplingParams
from dynamics.inference.shared_prefix import Branches, SharedPrefixDecoder
from dynamics.inference.steady import steady
from dynamics.models import load_model
from dynamics.models.tokens import Prompts, Tokens
from dynamics.models.vlm import UnifiedVLM
from dynamics.training.trainable import adapter_config

ACTIONS = ["push the red ring left", "remove the blue cross", "paint the red ring green"]


@pytest.fixture(scope="module")
def model(untrained_base: Path) -> UnifiedVLM:
    loaded = load_model("chameleon", untrained_base)
    with torch.no_grad():  # at random initialisation every logit is nearly equal: spread them
        loaded.network.lm_head.weight.mul_(30)
    return loaded


@pytest.fixture
def all_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of this size are too small to be packed by themselves."""
    monkeypatch.setattr("dynamics.models.packed.LEAST", 1)


@pytest.fixture(params=[*DECODERS, "packed"])
def decoder(request: pytest.FixtureRequest, model: UnifiedVLM) -> Decoder:
    if request.param == "packed":
        request.getfixturevalue("all_packed")
        return SharedPrefixDecoder(model, "fdp")
    engine: Any = imported(DECODERS[request.param])
    return engine(model, "fdp")  # type: ignore[no-any-return]


def prompt(decoder: Decoder, num: int = 3) -> torch.Tensor:
    source = np.random.default_rng(0).integers(0, 500, size=(num, 9))
    return decoder.tokens.fdp_prompt(source, ACTIONS[:num])


def test_greedy_codes_are_the_teacher_forced_argmax(decoder: Decoder, model: UnifiedVLM) -> None:
    drawn = decoder.sample_codes(prompt(decoder), GREEDY, [])
    codes = drawn.codes[:, 0]
    with torch.inference_mode():
        ids = decoder.tokens.code_rows(prompt(decoder), codes).ids
        logp = model.image_logits(model.hidden(ids)[:, -9:]).log_softmax(-1)
    assert (logp.argmax(-1).numpy() == codes).all()
    scored = decoder.score_codes(prompt(decoder), codes)
    assert np.allclose(scored, drawn.logprobs[:, 0], atol=1e-4)


def test_a_sample_does_not_depend_on_the_rows_beside_it(decoder: Decoder) -> None:
    sampling = SamplingParams(num_samples=4, temperature=1.0)
    together = decoder.sample_codes(prompt(decoder), sampling, [5, 6, 7]).codes
    alone = decoder.sample_codes(prompt(decoder)[1:2], sampling, [6]).codes
    assert (together[1] == alone[0]).all()
    assert (together[1][0] != together[1][1]).any()


@pytest.mark.parametrize("num", [1, 3, 8])
@pytest.mark.parametrize(
    ("layout", "guidance", "weights"),
    [("model", 1.0, None), ("frame_first", 2.0, None), ("model", 2.0, "all_packed")],
)
def test_a_row_of_the_steady_engine_is_the_same_to_the_bit_in_any_company(
    num: int, layout: str, guidance: float, weights: str | None, request: pytest.FixtureRequest
) -> None:
    if weights:
        request.getfixturevalue(weights)
    decoder = steady(request.getfixturevalue(layout), "fdp")
    source, codes = np.random.default_rng(0).integers(0, 500, size=(2, 9, 9))
    source[1:4] = source[0]
    said = [ACTIONS[row % 3] for row in range(9)]
    prompts = decoder.tokens.fdp_prompt(source, said)
    plain = decoder.tokens.fdp_prompt(source, [None] * 9) if guidance != 1 else None
    texts = [decoder.tokens.sentence_ids(action) for action in said]
    sampling = SamplingParams(num_samples=num, temperature=1.0, guidance=guidance, max_tokens=5)

    def last_row(rows: slice) -> list[Any]:
        others = None if plain is None else plain[rows]
        drawn = decoder.sample_codes(prompts[rows], sampling, range(9)[rows], others)
        written = decoder.sample_text(prompts[rows], sampling, range(0, 90, 10)[rows])
        scores = decoder.score_codes(prompts[rows], codes[rows])
        likely = decoder.score_text(prompts[rows], texts[rows])
        frames = drawn.codes, drawn.logprobs, drawn.drawn_logprobs
        return [written[-1], *(part[-1].tolist() for part in (*frames, scores, likely))]

    assert last_row(slice(0, 4)) == last_row(slice(3, 4)) == last_row(slice(2, 4))


@pytest.mark.parametrize("block", [4, 64])
@pytest.mark.parametrize(
    ("layout", "guidance", "weights"),
    [("model", 1.0, None), ("frame_first", 2.0, None), ("model", 2.0, "all_packed")],
)
def test_a_row_that_joins_between_steps_is_the_same_to_the_bit(
    block: int,
    layout: str,
    guidance: float,
    weights: str | None,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if weights:
        request.getfixturevalue(weights)
    monkeypatch.setattr("dynamics.inference.steady._BLOCK", block)
    monkeypatch.setattr("dynamics.inference.steady._APART", 1)
    decoder = steady(request.getfixturevalue(layout), "fdp")
    assert isinstance(decoder, JoiningDecoder)
    source = np.random.default_rng(0).integers(0, 500, size=(9, 9))
    source[1:4] = source[0]
    prompts = decoder.tokens.fdp_prompt(source, [ACTIONS[row // 2 % 3] for row in range(9)])
    plain = decoder.tokens.fdp_prompt(source, [None] * 9) if guidance != 1 else None
    sampling = SamplingParams(num_samples=3, temperature=1.0, guidance=guidance)

    def asked(rows: slice) -> Prompted:
        return Prompted(prompts[rows], range(9)[rows], None if plain is None else plain[rows])

    # Company that comes before, with, and after the others, and more than one step later.
    parts = [slice(0, 1), slice(1, 4), None, slice(4, 5), None, None, None, None, slice(5, 9)]
    waiting = iter([None if part is None else asked(part) for part in parts])
    joined = list(decoder.sample_codes_of(lambda: next(waiting, None), sampling))
    alone = [
        decoder.sample_codes(one.prompts, sampling, one.seeds, one.plain)
        for one in (asked(slice(row, row + 1)) for row in range(9))
    ]
    for name in ("codes", "logprobs", "drawn_logprobs"):
        together, single = (
            np.concatenate([getattr(part, name) for part in found]) for found in (joined, alone)
        )
        assert (together == single).all()


def test_text_samples_of_one_prompt_are_those_of_its_seed(decoder: Decoder) -> None:
    sampling = SamplingParams(num_samples=2, temperature=1.0, max_tokens=5)
    both = decoder.sample_text(prompt(decoder, 2), sampling, [1, 3])
    (alone,) = decoder.sample_text(prompt(decoder, 2)[1:], sampling, [3])
    assert [len(texts) for texts in both] == [2, 2]
    assert [text.ids for text in both[1]] == [text.ids for text in alone]
    assert both[1][0].ids != both[1][1].ids


def test_the_first_of_several_samples_can_be_the_greedy_one(decoder: Decoder) -> None:
    sampling = SamplingParams(num_samples=2, temperature=1.0, max_tokens=5, greedy_first=True)
    texts = decoder.sample_text(prompt(decoder, 2), sampling, [1, 3])
    greedy = decoder.sample_text(prompt(decoder, 2), SamplingParams(max_tokens=5), [])
    assert [first.ids for first, _ in texts] == [only.ids for (only,) in greedy]
    assert texts[0][1].ids != texts[0][0].ids
    codes = decoder.sample_codes(prompt(decoder, 2), sampling, [1, 3]).codes
    assert (codes[:, 0] == decoder.sample_codes(prompt(decoder, 2), GREEDY, []).codes[:, 0]).all()
    drawn = SamplingParams(num_samples=1, temperature=1.0)
    assert (codes[:, 1:] == decoder.sample_codes(prompt(decoder, 2), drawn, [1, 3]).codes).all()
    assert (codes[:, 0] != codes[:, 1]).any()


def test_text_has_no_image_token_and_one_logprob_a_token(decoder: Decoder) -> None:
    images = set(decoder.tokens.image_ids.tolist())
    texts = [text for (text,) in decoder.sample_text(prompt(decoder), GREEDY, [])]
    for text in texts:
        assert len(text.ids) == len(text.logprobs) <= decoder.tokens.prompts.action_tokens + 1
        assert all(value <= 0 for value in text.logprobs)
        assert not images & set(text.ids)
    scored = decoder.score_text(prompt(decoder), [text.ids for text in texts])
    assert np.allclose(scored, [sum(text.logprobs) for text in texts], atol=1e-4)


@pytest.mark.parametrize("engine", DECODERS)
def test_a_model_in_bfloat16_with_an_adapter_in_float32_draws_and_scores(
    engine: str, untrained_base: Path
) -> None:
    model = load_model("chameleon", untrained_base)
    adapter = adapter_config(LoraConfig(r=4, alpha=8))
    model.network = get_peft_model(model.network.to(torch.bfloat16), adapter, "fdp").eval()
    decoder: Decoder = imported(DECODERS[engine])(model, "fdp")
    drawn = decoder.sample_codes(prompt(decoder), GREEDY, [])
    scored = decoder.score_codes(prompt(decoder), drawn.codes[:, 0])
    assert np.allclose(scored, drawn.logprobs[:, 0], rtol=0.02)


def test_scores_do_not_depend_on_beginnings_that_rows_share(
    decoder: Decoder, model: UnifiedVLM
) -> None:
    prompts = prompt(decoder)[[0, 1, 0, 2, 0, 1]]
    prompts[4:, -1] += 1  # from here on different, in the place before the first scored one
    texts = [[9, 8, 7], [9], [4, 5, 6, 7], [9, 8, 7], [3], [9, 8]]
    codes = np.random.default_rng(1).integers(0, 500, size=(6, 9))
    for score, answers in ((decoder.score_text, texts), (decoder.score_codes, codes)):
        alone = [score(prompts[row : row + 1], answers[row : row + 1])[0] for row in range(6)]
        assert np.allclose(score(prompts, answers), alone, atol=1e-4)


def test_without_a_choice_the_network_decides_on_the_engine(
    untrained_base: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(untrained_base, other)
    config = json.loads((other / "config.json").read_text())
    config["rope_parameters"] |= {"rope_type": "linear", "factor": 2.0}
    (other / "config.json").write_text(json.dumps(config))
    engines = {
        base: {type(model._decoder) for model in load_bare(ModelConfig(base=base), "")}
        for base in (untrained_base, other)
    }
    assert engines == {untrained_base: {SharedPrefixDecoder}, other: {DynamicCacheDecoder}}
    with pytest.raises(UserError, match=r"model\.decoder=dynamic_cache"):
        load_bare(ModelConfig(base=other, decoder="shared_prefix"), "")


def test_no_rows_have_no_scores(decoder: Decoder) -> None:
    none = decoder.tokens.fdp_prompt(np.zeros((0, 9), np.int64), [])
    assert decoder.score_text(none, []).shape == (0,)
    assert decoder.score_codes(none, np.zeros((0, 9), np.int64)).shape == (0,)


@pytest.fixture(scope="module")
def frame_first(model: UnifiedVLM, untrained_base: Path) -> UnifiedVLM:
    """The model with prompts that begin with the frame, as published ones do, and have fillers."""
    other = load_model("chameleon", untrained_base)
    other.network = model.network
    prompts = Prompts(
        version="frame-first",
        fdp="{source} {action}",
        idm="{source}{target}",
        action_tokens=10,
    )
    ours = model.tokens
    other.tokens = Tokens(
        ours._tokenizer, prompts, image_ids=ours.image_ids, boi=ours.boi, eoi=ours.eoi,
        num_image_tokens=ours.num_image_tokens,
    )  # fmt: skip
    return other


def guided(model: UnifiedVLM, engine: str, sampling: SamplingParams) -> Candidates:
    decoder: Decoder = imported(DECODERS[engine])(model, "fdp")
    source = np.random.default_rng(0).integers(0, 500, size=(2, 9))[[0, 0, 1]]
    return ForwardDynamics(decoder, "").generate(source, ACTIONS, sampling, seeds=[1, 2, 3])


@pytest.mark.parametrize("layout", ["model", "frame_first"])
def test_engines_draw_the_same_under_guidance(layout: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(layout)
    sampling = SamplingParams(
        num_samples=3, temperature=0.8, guidance=2.5, min_p=0.01, greedy_first=True
    )
    reference, *others = (guided(model, engine, sampling) for engine in DECODERS)
    for ours in others:
        assert (ours.codes == reference.codes).all()
        assert np.allclose(ours.logprobs, reference.logprobs, atol=1e-4)
        assert np.allclose(ours.drawn_logprobs, reference.drawn_logprobs, atol=1e-4)
    without = guided(model, "shared_prefix", replace(sampling, guidance=1.0))
    assert (reference.codes != without.codes).any()


@pytest.mark.parametrize("engine", DECODERS)
def test_log_probabilities_are_the_models_own_and_those_of_the_draw(
    engine: str, frame_first: UnifiedVLM
) -> None:
    sampling = SamplingParams(num_samples=2, temperature=0.7, top_k=9, guidance=3.0)
    found = guided(frame_first, engine, sampling)
    source = np.random.default_rng(0).integers(0, 500, size=(2, 9))[[0, 0, 1]]
    for sample in range(2):
        logp, plain = (
            _code_logprobs(frame_first, source, actions, found.codes[:, sample])
            for actions in (ACTIONS, [None] * 3)
        )
        scores = (plain + 3.0 * (logp - plain)) / 0.7
        kept = scores.masked_fill(scores < scores.topk(9).values[..., -1:], -torch.inf)
        wanted = torch.as_tensor(found.codes[:, sample])[..., None]
        for values, sums in (
            (logp, found.logprobs),
            (kept.log_softmax(-1), found.drawn_logprobs),
        ):
            assert np.allclose(values.gather(-1, wanted).sum((1, 2)), sums[:, sample], atol=1e-3)


@torch.inference_mode()
def _code_logprobs(model: UnifiedVLM, source: Any, actions: Any, codes: Any) -> torch.Tensor:
    rows = model.tokens.fdp_rows(source, actions, codes)
    hidden = model.hidden(rows.ids)[rows.labels >= 0].view(len(codes), 9, -1)
    return model.image_logits(hidden).log_softmax(-1)


def test_guided_rows_share_their_frame(frame_first: UnifiedVLM) -> None:
    decoder = SharedPrefixDecoder(frame_first, "fdp")
    source = np.random.default_rng(0).integers(0, 500, size=(1, 9))
    prompts = [decoder.tokens.fdp_prompt(source, [action]) for action in [*ACTIONS, None] * 8]
    branches = Branches(frame_first, decoder._stack, torch.cat(prompts), 9)
    (beginning, of_row), (rest, _) = branches._shared
    assert [len(beginning[0][0]), len(rest[0][0])] == [1, 32]
    assert beginning[0][0].shape[2] >= 12  # bos, boi, nine codes, eoi
    assert of_row.tolist() == [0] * 32


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_engines_draw_the_same(model: UnifiedVLM, temperature: float) -> None:
    engines: list[Decoder] = [imported(DECODERS[name])(model, "fdp") for name in DECODERS]
    num = 6 if temperature else 1
    sampling = SamplingParams(
        num_samples=num,
        temperature=temperature,
        top_k=7 if temperature else None,
        top_p=0.9 if temperature else 1.0,
        greedy_first=num > 1,
    )
    prompts = prompt(engines[0])[[0, 1, 0, 2]]  # one comes twice
    reference, *others = [
        (
            e.sample_text(prompts, sampling, [1, 20, 40, 60]),
            e.sample_codes(prompts, sampling, [1, 2, 3, 4]),
        )
        for e in engines
    ]
    for texts, frames in others:
        for ours, theirs in zip(chain(*texts), chain(*reference[0]), strict=True):
            assert ours.ids == theirs.ids
            assert np.allclose(ours.logprobs, theirs.logprobs, atol=1e-5)
        assert (frames.codes == reference[1].codes).all()
        assert np.allclose(frames.logprobs, reference[1].logprobs, atol=1e-4)
