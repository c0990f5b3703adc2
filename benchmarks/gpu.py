"""Stages of a 7B model on one GPU, beside transformers, and the floors of bytes and FLOPs.

    python benchmarks/gpu.py --out FILE     # Chameleon-7B's and Liquid-7B's shapes, random weights
    python benchmarks/gpu.py --tiny         # on a CPU; shows that it runs

Runs unattended within --budget-s (9 minutes): a figure that would begin later is left out, and
named. The JSON file is whole after every figure. `dynamics plan` is held against these figures.
Speed does not depend on the weights; decoding is timed over a few tokens and reckoned up to whole
frames. Results are compared in float32 on a small shape before anything is timed.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import transformers
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig
from transformers.utils import logging

from benchmarks.encode import pictures, tokenizer
from dynamics.inference.budget import Budget, cache_bytes
from dynamics.inference.captured import CapturedDecoder
from dynamics.inference.decode import DynamicCacheDecoder
from dynamics.inference.sampling import GREEDY, SamplingParams
from dynamics.inference.shared_prefix import SharedPrefixDecoder
from dynamics.models.tokens import Rows
from dynamics.models.vlm import UnifiedVLM
from dynamics.training.loss import RowLoss
from dynamics.training.objectives import objective

Shape = Literal["anole-7b", "liquid-7b"]
LORA: dict[str, Any] = {
    "r": 16, "lora_alpha": 32, "lora_dropout": 0.05,
    "target_modules": [
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    ],
}  # fmt: skip
TINY = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 1000,
    "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32,
}  # fmt: skip
_NEEDS_S = 45
"""A figure does not begin when less of the budget is left."""


class Report:
    """Figures in a file that is whole after each of them."""

    def __init__(self, out: Path | None, device: str, budget_s: float) -> None:
        self._out, self._device = out, device
        self._end = time.monotonic() + budget_s
        name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
        self.found: dict[str, Any] = {"device": name, "date": time.strftime("%Y-%m-%d")}

    def keep(self, name: str, value: Any) -> None:
        """Write a figure."""
        self.found[name] = value
        sys.stderr.write(json.dumps({name: value}) + "\n")
        if self._out is not None:
            self._out.write_text(json.dumps(self.found, indent=1) + "\n")

    def measure(
        self, name: str, run: Callable[[], object], repeats: int = 1, **more: float
    ) -> float:
        """Seconds of a run, NaN where there are none; with the most memory meanwhile, and more."""
        if self._end - time.monotonic() < _NEEDS_S:
            self.keep(name, "left out: no time")
            return float("nan")
        try:
            value = measured(run, self._device, repeats)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            self.keep(name, "out of memory")
            return float("nan")
        self.keep(name, value | more)
        return value["seconds"]


def model(device: str, shape: Shape, *, tiny: bool, dtype: torch.dtype) -> UnifiedVLM:
    """The network with LoRA on random weights; its tokens are numbers without a text."""
    published = json.loads((ROOT / f"dynamics/assets/published/{shape}.json").read_text())
    config = AutoConfig.for_model(**(published["config"] | (TINY if tiny else {})))
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    with torch.device(device):
        network = getattr(transformers, published["config"]["architectures"][0])(config)
        with torch.no_grad():  # else every logit is nearly equal, and ties decide
            network.lm_head.weight.mul_(30)
    torch.set_default_dtype(torch.float32)
    if shape == "anole-7b":  # else transformers draws no code
        network.model.vocabulary_mapping.__dict__["image_tokens"] = []
    network = get_peft_model(network, LoraConfig(**LORA))
    codes = 100 if tiny else published["num_codes"]
    ids = torch.arange(10, 10 + codes)
    tokens: Any = SimpleNamespace(
        image_ids=ids, bos=1, eos=-1, eoi=9, num_image_tokens=0,  # no sentence ends early
        lead=lambda prompt: None,
        prompts=SimpleNamespace(action_tokens=published["action_tokens"]),
        code_rows=lambda prompt, target: Rows(
            torch.cat([prompt, ids[target]], 1)[:, :-1], _labels(prompt, ids[target])
        ),
    )  # fmt: skip
    images: Any = SimpleNamespace(num_codes=codes)
    vlm = UnifiedVLM(ROOT / "dynamics/assets/tiny-4x4", network, images, tokens, device)
    vlm.use = lambda name: None  # type: ignore[method-assign]  # the one adapter is active
    return vlm


def _labels(prompt: torch.Tensor, answer: torch.Tensor) -> torch.Tensor:
    labels = torch.full((len(prompt), prompt.shape[1] + answer.shape[1] - 1), -100)
    labels[:, prompt.shape[1] - 1 :] = answer
    return labels


def measured(run: Callable[[], object], device: str, repeats: int = 1) -> dict[str, float]:
    """Seconds of a run, after one that is not counted, and the most memory in bytes meanwhile."""
    run()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    if device == "cuda":
        torch.cuda.synchronize()
    found = {"seconds": (time.perf_counter() - start) / repeats}
    if device == "cuda":
        found["bytes"] = torch.cuda.max_memory_allocated()
        found["reserved"] = torch.cuda.max_memory_reserved()
        torch.cuda.empty_cache()
    return found


def ceilings(report: Report, device: str, *, tiny: bool) -> tuple[float, float]:
    """Bytes a second of a copy (read and written), and FLOPs a second of a bfloat16 product."""
    size = 256 if tiny else 8192
    here = torch.empty(size * size, dtype=torch.bfloat16, device=device).view(size, size).fill_(1)
    there = torch.empty_like(here)
    copy = measured(lambda: there.copy_(here), device, 20)["seconds"]
    product = measured(lambda: torch.mm(here, there), device, 10)["seconds"]
    rates = 4 * size * size / copy, 2 * size**3 / product
    report.keep("ceilings", {"bytes a second": rates[0], "bfloat16 FLOP a second": rates[1]})
    return rates


def equality(device: str, shape: Shape) -> str:
    """Compare engines, and transformers, in float32 on a small shape; raises where they differ."""
    vlm = model(device, shape, tiny=True, dtype=torch.float32)
    vlm.network.eval()
    vlm.tokens.num_image_tokens = 12
    ours, reference = SharedPrefixDecoder(vlm, "default"), DynamicCacheDecoder(vlm, "fdp")  # type: ignore[arg-type]
    prompt = torch.randint(10, 100, (3, 20))
    sampled = SamplingParams(num_samples=4, temperature=1.0, guidance=2.0)
    for sampling in (GREEDY, sampled):
        plain = None if sampling is GREEDY else prompt.flip(0)
        theirs = reference.sample_codes(prompt, sampling, [1, 2, 3], plain)
        mine = ours.sample_codes(prompt, sampling, [1, 2, 3], plain)
        if (mine.codes != theirs.codes).any() or abs(mine.logprobs - theirs.logprobs).max() > 1e-3:
            raise SystemExit(f"{shape}: the engines differ")
    kept = torch.full((1000,), -torch.inf, device=device)
    kept[10:110] = 0
    drawn = vlm.causal_lm.generate(
        prompt.to(device), max_new_tokens=12, min_new_tokens=12, do_sample=False, pad_token_id=0,
        attention_mask=torch.ones_like(prompt).to(device),
        logits_processor=[lambda ids, scores: scores + kept],
    )  # fmt: skip
    greedy = ours.sample_codes(prompt, GREEDY, []).codes[:, 0]
    if (drawn[:, 20:].cpu().numpy() - 10 != greedy).any():
        raise SystemExit(f"{shape}: transformers draws other codes")
    target = np.zeros((3, 12), dtype=np.int64)
    apart = abs(ours.score_codes(prompt, target) - reference.score_codes(prompt, target)).max()
    if apart > 1e-3:
        raise SystemExit(f"{shape}: scores differ by {apart}")
    try:  # no GPU has run it yet: without it the other figures are still wanted
        captured = CapturedDecoder(vlm, "default").sample_codes(prompt, sampled, [1, 2, 3], plain)  # type: ignore[arg-type]
        same = bool((captured.codes == theirs.codes).all())
        says = "too" if same else "fail: other codes"
    except RuntimeError as error:
        says = f"fail: {error}"
    return (
        f"codes of both engines and of transformers; scores to {apart:.1e}; captured steps {says}"
    )


def training(vlm: UnifiedVLM, rows: int, length: int, scored: int) -> Callable[[], None]:
    """Forward and backward of a micro-batch of the FDP, in bfloat16 by autocast."""
    loss = RowLoss(vlm, objective("nll"))
    ids = vlm.image_ids[torch.randint(len(vlm.image_ids), (rows, length), device=vlm.device)]
    labels = torch.full_like(ids, -100)
    labels[:, -scored:] = ids[:, -scored:]

    def run() -> None:
        with torch.autocast(vlm.device.type, torch.bfloat16):
            loss(ids, labels, None, "fdp").backward()
        vlm.network.zero_grad(set_to_none=True)

    return run


def peer_training(vlm: UnifiedVLM, length: int) -> Callable[[], None]:
    """The same of one row as peft's users run it: transformers' loss over all words."""
    ids = vlm.image_ids[torch.randint(len(vlm.image_ids), (1, length), device=vlm.device)]

    def run() -> None:
        with torch.autocast(vlm.device.type, torch.bfloat16):
            vlm.network(input_ids=ids, labels=ids).loss.backward()
        vlm.network.zero_grad(set_to_none=True)

    return run


def train(report: Report, name: str, vlm: UnifiedVLM, length: int, codes: int) -> None:
    """A LoRA step without its optimizer, beside transformers' with and without recomputation."""
    vlm.network.train()
    for rows in (1, 2, 3, 4):
        report.measure(f"{name}train {rows} rows", training(vlm, rows, length, codes), 2)
    report.measure(f"{name}train 1 rows, transformers", peer_training(vlm, length), 2)
    vlm.network.gradient_checkpointing_enable({"use_reentrant": False})
    report.measure(f"{name}train 1 rows, checkpointing", training(vlm, 1, length, codes), 2)
    report.measure(
        f"{name}train 1 rows, transformers, checkpointing", peer_training(vlm, length), 2
    )
    vlm.network.gradient_checkpointing_disable()
    vlm.network.eval()


def draws(
    report: Report,
    name: str,
    vlm: UnifiedVLM,
    engines: dict[str, Any],
    sizes: tuple[int, int, int],
    bytes_s: float,
) -> torch.Tensor:
    """Frames of a prompt, with and without guidance; returns the prompt."""
    length, codes, steps = sizes
    weights = sum(p.numel() for p in vlm.decoder.layers.parameters())
    cache = cache_bytes(Budget(vlm).shape)
    drawing = dict(engines)
    if report.found[f"equal, {name.removesuffix(': ') or 'anole-7b'}"].endswith("too"):
        drawing[", captured"] = CapturedDecoder(vlm, "default")  # type: ignore[arg-type]
    prompt, plain = torch.randint(10, 100, (2, 1, length - codes))
    for samples in (8, 32):
        for guidance in (1.0, 3.0):
            ways = 2 if guidance != 1 else 1
            sampling = SamplingParams(num_samples=samples, temperature=1.0, guidance=guidance)
            suffix = samples * ways * codes / 2
            step = (2 * weights + cache * (prompt.shape[1] + suffix)) / bytes_s
            for which, engine in drawing.items():
                title = f"{name}draw {samples} of 1, {{}} codes{', guided' * (ways - 1)}{which}"
                seconds = []
                others = plain if ways == 2 else None
                run = partial(engine.sample_codes, prompt, sampling, [0], others)
                for count in (1, steps):
                    vlm.tokens.num_image_tokens = count
                    seconds.append(report.measure(title.format(count), run, floor_s=step * count))
                each = (seconds[1] - seconds[0]) / (steps - 1)
                whole = {"seconds": seconds[0] + each * (codes - 1), "floor_s": step * codes}
                report.keep(title.format(codes) + ", reckoned", whole)
    return prompt


def inference(
    report: Report,
    name: str,
    vlm: UnifiedVLM,
    sizes: tuple[int, int, int],
    rates: tuple[float, float],
) -> None:
    """Labels, draws and scores of the engine, its reference, and transformers."""
    length, codes, steps = sizes
    bytes_s, flops_s = rates
    weights = sum(p.numel() for p in vlm.decoder.layers.parameters())
    engines: dict[str, Any] = {
        "": SharedPrefixDecoder(vlm, "default"),  # type: ignore[arg-type]
        ", reference": DynamicCacheDecoder(vlm, "fdp"),
    }

    def generate(prompt: torch.Tensor, count: int, **more: Any) -> Callable[[], object]:
        ids = prompt.to(vlm.device)
        return lambda: vlm.causal_lm.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, min_new_tokens=count,
            pad_token_id=0, **more,
        )  # fmt: skip

    for rows in (8, 32):
        prompt = torch.randint(10, 100, (rows, length - steps - 1))
        floor = 2 * weights * prompt.numel() / flops_s
        for which, engine in engines.items():
            for count in (1, steps):
                run = partial(engine.sample_text, prompt, SamplingParams(max_tokens=count), [])
                title = f"{name}label {rows} pairs, {count} tokens{which}"
                report.measure(title, run, floor_s=floor)
    one = torch.randint(10, 100, (1, length - steps - 1))
    report.measure(
        f"{name}label 1 pairs, {steps} tokens, transformers", generate(one, steps, do_sample=False)
    )
    prompt = draws(report, name, vlm, engines, sizes, bytes_s)
    sampled = {"do_sample": True, "top_k": 0}
    eight: dict[str, Any] = {"num_return_sequences": 8}
    for what, more in (
        ("draw 1 of 1", {}),
        ("draw 8 of 1", eight),
        ("draw 8 of 1, static cache", eight | {"cache_implementation": "static"}),
    ):
        run = generate(prompt, steps, **sampled, **more)
        report.measure(f"{name}{what}, {steps} codes, transformers", run)
    vlm.tokens.num_image_tokens = codes
    score(report, name, vlm, engines, (length, codes))


def score(
    report: Report, name: str, vlm: UnifiedVLM, engines: dict[str, Any], sizes: tuple[int, int]
) -> None:
    """Frames that are given, and a sentence of 8 candidates with one first frame (verify)."""
    length, codes = sizes
    target = np.zeros((16, codes), dtype=np.int64)
    prompt = torch.randint(10, 100, (16, length - codes))
    candidates = torch.randint(10, 100, (8, length - 17))
    candidates[:, : length - 17 - codes] = candidates[0, : length - 17 - codes]
    words = torch.randint(200, 900, (8, 15))
    vlm.tokens.text_rows = lambda prompt, texts: Rows(
        torch.cat([prompt, words], 1)[:, :-1], _labels(prompt, words)
    )
    for which, engine in engines.items():
        report.measure(f"{name}score 16 rows{which}", partial(engine.score_codes, prompt, target))
    run = partial(engines[""].score_text, candidates, [[]] * 8)
    report.measure(f"{name}verify 8", run)
    rows = torch.cat([candidates, words], 1).to(vlm.device)

    @torch.inference_mode()
    def forward() -> None:
        for row in rows:
            logits = vlm.causal_lm(input_ids=row[None], use_cache=False).logits
            logits[:, -16:].float().log_softmax(-1)

    report.measure(f"{name}verify 8, transformers, one by one", forward)


def frames_of(report: Report, device: str, *, tiny: bool) -> None:
    """Codes with features, and frames, of the published VQGAN."""
    images = tokenizer(device, tiny=tiny)
    frames = pictures(16, images.frame_px)
    drawn = images.encode(frames)
    report.measure("encode 16 frames", lambda: images.encode_with_features(frames), 2)
    report.measure("decode 16 frames", lambda: images.decode(drawn), 2)
    images.batch_frames = 1
    report.measure("encode 16 frames, one at a time", lambda: images.encode(frames))


def main() -> None:
    """Measure, and write JSON, a figure as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--budget-s", type=float, default=540)
    parser.add_argument("--shapes", nargs="+", default=["anole-7b", "liquid-7b"])
    chosen = parser.parse_args()
    logging.set_verbosity_error()
    tiny = chosen.tiny
    device = "cpu" if tiny else "cuda"
    sizes = (60, 16, 3) if tiny else (2110, 1024, 16)
    report = Report(chosen.out, device, chosen.budget_s)
    rates = ceilings(report, device, tiny=tiny)
    for shape in chosen.shapes:
        report.keep(f"equal, {shape}", equality(device, shape))
    frames_of(report, device, tiny=tiny)
    for shape in chosen.shapes:
        name = "" if shape == "anole-7b" else f"{shape}: "
        vlm = model(device, shape, tiny=tiny, dtype=torch.bfloat16)
        train(report, name, vlm, sizes[0], sizes[1])
        inference(report, name, vlm, sizes, rates)
        del vlm
        if device == "cuda":
            torch.cuda.empty_cache()
    sys.stdout.write(json.dumps(report.found) + "\n")


if __name__ == "__main__":
    main()
