import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from dynamics.inference.decode import gumbel_noise, scores_to_draw
from dynamics.inference.sampling import SamplingParams


def test_gumbel_noise_samples_from_the_softmax() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0])
    draws = (logits + gumbel_noise(range(4000), (3,))).argmax(-1)
    shares = torch.bincount(draws, minlength=3) / 4000
    assert torch.allclose(shares, logits.softmax(-1), atol=0.03)


def test_top_k_and_top_p_are_those_of_transformers() -> None:
    logits = torch.randn(20, 50, generator=torch.Generator().manual_seed(0)) * 3
    for k, p in ((5, 1.0), (50, 0.8), (10, 0.5), (1, 1.0), (80, 1e-6)):
        wanted = TemperatureLogitsWarper(0.7)(None, logits.log_softmax(-1))
        for warper in (TopKLogitsWarper(k), *([TopPLogitsWarper(p)] if p < 1 else [])):
            wanted = warper(None, wanted)
        sampling = SamplingParams(temperature=0.7, top_k=k, top_p=p)
        found = scores_to_draw(logits.log_softmax(-1), sampling)
        assert torch.allclose(found.softmax(-1), wanted.softmax(-1))
