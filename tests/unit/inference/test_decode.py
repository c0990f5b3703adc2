from pathlib import Path

import numpy as np
import pytest
import torch

from dynamics.inference.decode import decode_codes, decode_text, gumbel_noise
from dynamics.models import load_model
from dynamics.models.vlm import UnifiedVLM

ACTIONS = ["push the red ring left", "remove the blue cross", "paint the red ring green"]


@pytest.fixture(scope="module")
def model(untrained_base: Path) -> UnifiedVLM:
    loaded = load_model("chameleon", untrained_base)
    with torch.no_grad():  # at random initialisation every logit is nearly equal: spread them
        loaded.network.lm_head.weight.mul_(30)
    return loaded


def prompt(model: UnifiedVLM, num: int = 3) -> torch.Tensor:
    source = np.random.default_rng(0).integers(0, 500, size=(num, 9))
    return model.tokens.fdp_prompt(source, ACTIONS[:num])


def test_cached_greedy_decoding_equals_teacher_forced_argmax(model: UnifiedVLM) -> None:
    decoded = decode_codes(model, prompt(model), num_samples=1, temperature=0)
    codes = decoded.codes[:, 0]
    with torch.inference_mode():
        ids = torch.cat([prompt(model), model.tokens.image_ids[codes]], dim=1)[:, :-1]
        logp = model.image_logits(model.hidden(ids)[:, -9:]).log_softmax(-1)
    assert (logp.argmax(-1) == codes).all()
    forced = logp.gather(-1, codes[..., None])[..., 0].sum(-1).double()
    assert torch.allclose(forced, decoded.logprobs[:, 0], atol=1e-4)


def test_a_sample_does_not_depend_on_the_rows_beside_it(model: UnifiedVLM) -> None:
    together = decode_codes(
        model, prompt(model), num_samples=4, temperature=1.0, seeds=[5, 6, 7]
    ).codes
    alone = decode_codes(model, prompt(model)[1:2], num_samples=4, temperature=1.0, seeds=[6]).codes
    assert (together[1] == alone[0]).all()
    assert (together[1][0] != together[1][1]).any()


def test_gumbel_noise_samples_from_the_softmax() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0])
    draws = (logits + gumbel_noise(range(4000), (3,))).argmax(-1)
    shares = torch.bincount(draws, minlength=3) / 4000
    assert torch.allclose(shares, logits.softmax(-1), atol=0.03)


def test_text_samples_of_one_prompt_are_those_of_its_seeds(model: UnifiedVLM) -> None:
    both = decode_text(
        model, prompt(model, 2), max_tokens=5, num_samples=2, temperature=1.0, seeds=[1, 2, 3, 4]
    )
    alone = decode_text(model, prompt(model, 2)[1:], max_tokens=5, temperature=1.0, seeds=[4])
    assert len(both) == 4
    assert both[3].ids == alone[0].ids
    assert both[2].ids != both[3].ids


def test_the_first_of_several_samples_can_be_the_greedy_one(model: UnifiedVLM) -> None:
    rows = decode_text(
        model,
        prompt(model, 2),
        max_tokens=5,
        num_samples=2,
        temperature=1.0,
        seeds=[1, 2, 3, 4],
        greedy_first=True,
    )
    greedy = decode_text(model, prompt(model, 2), max_tokens=5)
    assert [row.ids for row in rows[::2]] == [row.ids for row in greedy]
    assert rows[1].ids != rows[0].ids


def test_text_decoding_gives_no_image_token_and_one_logprob_a_token(model: UnifiedVLM) -> None:
    images = set(model.tokens.image_ids.tolist())
    for row in decode_text(model, prompt(model), max_tokens=6):
        assert len(row.ids) == len(row.logprobs) <= 6
        assert all(value <= 0 for value in row.logprobs)
        assert not images & set(row.ids)
