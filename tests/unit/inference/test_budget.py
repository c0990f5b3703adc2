"""Batches follow from the memory of the device, and results do not follow from the batches."""

import json
import weakref
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dynamics.core.config_file import load
from dynamics.core.registry import imported
from dynamics.inference import budget
from dynamics.inference.budget import Budget, Shape, drawn_bytes, scored_bytes
from dynamics.inference.decoder import DECODERS, Decoder
from dynamics.inference.sampling import SamplingParams
from dynamics.models import load_model
from dynamics.models.vlm import UnifiedVLM
from dynamics.plan.cluster import card
from dynamics.plan.memory import OVERHEAD_BYTES
from dynamics.plan.sizes import PUBLISHED, _network, base_sizes

ROOT = Path(__file__).resolve().parents[3]


class PeakBytes(TorchDispatchMode):
    """The most bytes that tensors made meanwhile held at once."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._now = 0
        self._tensors: Counter[int] = Counter()  # of every storage

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and (size := tensor.untyped_storage().nbytes()):
                place = tensor.untyped_storage().data_ptr()
                self._now += size * (self._tensors[place] == 0)
                self._tensors[place] += 1
                self.peak = max(self.peak, self._now)
                weakref.finalize(tensor, self._forget, place, size)
        return result

    def _forget(self, place: int, size: int) -> None:
        self._tensors[place] -= 1
        self._now -= size * (self._tensors[place] == 0)


@pytest.fixture(scope="module")
def model(untrained_base: Path) -> UnifiedVLM:
    loaded = load_model("chameleon", untrained_base)
    with torch.no_grad():
        loaded.network.lm_head.weight.mul_(30)
    return loaded


@pytest.mark.parametrize("engine", DECODERS)
def test_batches_stay_within_a_limit_and_change_no_result(
    engine: str, model: UnifiedVLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder: Decoder = imported(DECODERS[engine])(model, "fdp")
    source, codes = np.random.default_rng(0).integers(0, 500, size=(2, 24, 9))
    prompts = decoder.tokens.fdp_prompt(source, ["push the red ring left"] * 24)
    texts = [decoder.tokens.sentence_ids("push the red ring left")] * 24
    sampling = SamplingParams(num_samples=4, temperature=1.0)
    few = SamplingParams(num_samples=2, temperature=1.0, max_tokens=4)

    def work() -> list[Any]:
        drawn = decoder.sample_codes(prompts, sampling, range(24))
        said = decoder.sample_text(prompts, few, range(0, 240, 10))
        found = [[text.ids for text in both] for both in said]
        scores = decoder.score_codes(prompts, codes), decoder.score_text(prompts, texts)
        return [drawn.codes, found, *scores]

    with PeakBytes() as free:
        whole = work()
    limit = free.peak // 3
    monkeypatch.setattr(budget, "free_bytes", lambda device: limit)
    with PeakBytes() as limited:
        cut = work()
    assert limited.peak <= limit
    assert (cut[0] == whole[0]).all()
    assert cut[1] == whole[1]
    assert np.allclose(cut[2], whole[2], atol=1e-4)
    assert np.allclose(cut[3], whole[3], atol=1e-4)


@pytest.mark.parametrize(("config", "name"), [("chameleon7b", "H100"), ("liquid7b", "L40S")])
def test_a_7b_model_never_draws_or_scores_more_than_its_card_holds(
    config: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = load(ROOT / f"configs/{config}.yaml")
    sizes, base = base_sizes(cfg), cfg.base_path()
    found = card(name)
    assert found is not None
    left = found.memory - OVERHEAD_BYTES - sizes.weight_bytes * sizes.total
    monkeypatch.setattr(budget, "free_bytes", lambda device: left)
    published = json.loads((PUBLISHED / f"{base.name}.json").read_text())
    network: Any = _network(published["config"]).to(torch.bfloat16)  # on the meta device
    fake: Any = SimpleNamespace(
        decoder=network.model, device=torch.device("cpu"), text_ids=range(sizes.vocabulary),
        tokens=SimpleNamespace(
            prompts=SimpleNamespace(action_tokens=sizes.action_tokens), num_image_tokens=1024
        ),
        images=SimpleNamespace(num_codes=sizes.num_codes),
    )  # fmt: skip
    batches = Budget(fake)
    assert batches.shape == Shape(**{f.name: getattr(sizes, f.name) for f in fields(Shape)})
    # The evaluation that ran out of memory: 50 pairs, 9 frames each, 1.03 GiB a frame.
    prompts = torch.empty(50, 1087, device="meta")
    many = SamplingParams(num_samples=9, temperature=1.0)
    row = drawn_bytes(batches.shape, 1087, 9, 1024, sizes.num_codes)
    assert 50 * row > left
    parts = list(batches.frames(prompts, many))
    assert sum(part.stop - part.start for part in parts) == 50
    assert max(part.stop - part.start for part in parts) * row <= left
    guided = list(batches.frames(prompts, replace(many, guidance=3.0)))
    assert max(part.stop - part.start for part in guided) * 2 * row <= left
    score = scored_bytes(batches.shape, 2111, 1024, sizes.num_codes)
    scored = list(batches.scored_frames(torch.empty(450, 1087, device="meta")))
    assert max(part.stop - part.start for part in scored) * score <= left
