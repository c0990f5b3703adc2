from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dynamics.models.tokens import IGNORE, Rows
from dynamics.pretraining import base
from dynamics.pretraining.base import BaseRecipe, build_network, heldout_losses, train_base

RECIPE = BaseRecipe(width=16, layers=1, heads=2, feed_forward=32, steps=6)


def small_network() -> Any:
    words = {f"word{number}": number for number in range(6)}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return build_network(RECIPE, SimpleNamespace(get_vocab=lambda: words, **ids), num_codes=8)


def batches(start: int) -> Iterator[Mapping[str, Rows]]:
    """Two tasks, told apart by a row's first word: the same code again, and the code after it."""
    for step in range(start, 100):
        torch.manual_seed(step)
        codes = torch.randint(6, 14, (4, 10))
        rows = {}
        for word, (task, answer) in enumerate(
            {"again": codes, "next": (codes - 5) % 8 + 6}.items()
        ):
            ids = torch.cat([torch.full((4, 1), 3 + word), codes], dim=1)
            rows[task] = Rows(ids, torch.cat([torch.full((4, 1), IGNORE), answer], dim=1))
        yield rows


def weights(network: Any) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in network.named_parameters()}


def test_a_training_that_was_stopped_takes_the_same_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "SNAPSHOT_EVERY", 2)
    whole = small_network()
    unbroken = list(train_base(whole, batches, RECIPE))

    first = train_base(small_network(), batches, RECIPE, tmp_path)
    begun = [next(first) for _ in range(5)]
    first.close()
    again = small_network()
    rest = list(train_base(again, batches, RECIPE, tmp_path))

    assert begun[:4] + rest == unbroken
    assert [step for step, _ in rest] == [5, 6]
    assert all(torch.equal(p, weights(again)[name]) for name, p in weights(whole).items())
    assert not list(train_base(small_network(), batches, RECIPE, tmp_path))  # nothing is left to do


def test_a_base_learns_its_tasks_and_heldout_rows_tell() -> None:
    network = small_network()
    heldout = [next(batches(90)), next(batches(91))]
    before = heldout_losses(network, heldout)
    recipe = BaseRecipe(steps=60, muon_lr=1e-2, adamw_lr=2e-2)
    for _, losses in train_base(network, batches, recipe):
        assert set(losses) == {"again", "next"}
    after = heldout_losses(network, heldout)
    assert after["again"] < 0.2 * before["again"]
    assert after["next"] < 0.2 * before["next"]
