import torch
from transformers import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from dynamics.inference.decode import gumbel_noise, scores_to_draw
from dynamics.inference.sampling import SamplingParams


def test_gumbel_noise_samples_from_the_softmax() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0])
    draws = (logits + gumbel_noise(range(4000), (3,))).argmax(-1)
    shares = torch.bincount(draws, minlength=3) / 4000
    assert torch.allclose(shares, logits.softmax(-1), atol=0.03)


def test_top_k_top_p_and_min_p_are_those_of_transformers() -> None:
    logits = torch.randn(20, 50, generator=torch.Generator().manual_seed(0)) * 3
    for k, p, least in (
        (5, 1.0, 0), (50, 0.8, 0), (10, 0.5, 0), (1, 1.0, 0), (80, 1e-6, 0),
        (50, 1.0, 0.1), (10, 0.9, 0.2),
    ):  # fmt: skip
        wanted = TemperatureLogitsWarper(0.7)(None, logits.log_softmax(-1))
        warpers = [TopKLogitsWarper(k), *([TopPLogitsWarper(p)] if p < 1 else [])]
        for warper in [*warpers, *([MinPLogitsWarper(least)] if least else [])]:
            wanted = warper(None, wanted)
        sampling = SamplingParams(temperature=0.7, top_k=k, top_p=p, min_p=least)
        found = scores_to_draw(logits.log_softmax(-1), sampling)
        assert torch.allclose(found.softmax(-1), wanted.softmax(-1))
