from itertools import pairwise

import torch
from transformers import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from dynamics.inference.decode import scores_to_draw
from dynamics.inference.noise import Noise
from dynamics.inference.sampling import SamplingParams


def uniform(noise: torch.Tensor) -> torch.Tensor:
    return (-(-noise).exp()).exp()


def test_noise_samples_from_the_softmax_over_seeds_samples_and_steps() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0])
    one = SamplingParams(num_samples=1, temperature=1.0)
    many = SamplingParams(num_samples=4000, temperature=1.0)
    over_steps = Noise([5], one, torch.arange(3))
    for noise in (
        Noise(range(4000), one, torch.arange(3))(7),
        Noise([5], many, torch.arange(3))(7),
        torch.cat([over_steps(step) for step in range(4000)]),
    ):
        shares = torch.bincount((logits + noise).argmax(-1), minlength=3) / 4000
        assert torch.allclose(shares, logits.softmax(-1), atol=0.03)


def test_noise_is_uniform_and_independent_of_its_neighbours() -> None:
    noise = Noise([1, 2], SamplingParams(num_samples=2, temperature=1.0), torch.arange(50_000))
    here, later = uniform(noise(0)), uniform(noise(1))
    for row in here:
        counts = torch.histc(row, 100, 0, 1)
        assert ((counts - 500) ** 2 / 500).sum() < 150  # chi-square of 99: 1 in 1,000 above 148
    pairs = [*pairwise(here), (here[0, 1:], here[0, :-1]), (here[0], later[0])]
    for one, other in pairs:
        assert abs(torch.corrcoef(torch.stack([one, other]))[0, 1]) < 0.02
    assert len(torch.unique(torch.cat([here, later]))) > 0.97 * 8 * 50_000


def test_a_row_has_its_noise_alone_and_among_others_wherever_the_greedy_one_stands() -> None:
    drawn = SamplingParams(num_samples=2, temperature=1.0)
    first = SamplingParams(num_samples=3, temperature=1.0, greedy_first=True)
    places = torch.tensor([3, 1, 70_000])
    both, with_greedy = (Noise([8, 9], sampling, places)(4) for sampling in (drawn, first))
    assert (both[2:] == Noise([9], drawn, places)(4)).all()
    assert (both[2:] == Noise([8, 9], drawn, places)(4, torch.tensor([2, 3]))).all()
    assert (both[:, 1:] == Noise([8, 9], drawn, places[1:])(4)).all()
    assert (with_greedy.view(2, 3, -1)[:, 0] == 0).all()
    assert (with_greedy.view(2, 3, -1)[:, 1:] == both.view(2, 2, -1)).all()


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
