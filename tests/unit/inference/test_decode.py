import torch

from dynamics.inference.decode import gumbel_noise


def test_gumbel_noise_samples_from_the_softmax() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0])
    draws = (logits + gumbel_noise(range(4000), (3,))).argmax(-1)
    shares = torch.bincount(draws, minlength=3) / 4000
    assert torch.allclose(shares, logits.softmax(-1), atol=0.03)
