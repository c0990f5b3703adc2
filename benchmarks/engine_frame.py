"""The frame of the engine's benchmarks: models of two shapes, cases in turn, a dated result.

tiny is the shipped checkpoint. MID has random weights: 64.5 M parameters, 65,536 words of which
8,192 are codes, 256 codes a frame; mid1024 is MID with 1,024 codes a frame. One thread; CPU seconds
of this thread, so that other work on the machine counts less; medians over rounds in which every
case runs once.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, get_args

import numpy as np
import torch
import transformers
from transformers import AutoConfig, ChameleonForConditionalGeneration
from transformers.utils import logging

from dynamics.models import load_model
from dynamics.models.chameleon import image_token_name
from dynamics.models.tokens import Tokens
from dynamics.models.vlm import UnifiedVLM

Shape = Literal["tiny", "mid", "mid1024"]
Cases = Mapping[str, Callable[[], Any]]
"""What is measured, by name; the first one is the product's."""


@dataclass(frozen=True, slots=True)
class Size:
    """The size of what is measured."""

    shape: Shape
    samples: int = 8
    """Frames to draw or to verify for a source."""

    def __str__(self) -> str:
        return self.shape if self.samples == 8 else f"{self.shape}-{self.samples}"


ROOT = Path(__file__).resolve().parents[1]
BASE = ROOT / "dynamics/assets/tiny-4x4"
_MID = {
    "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8, "vocab_size": 65_536,
    "num_attention_heads": 6, "num_key_value_heads": 6, "max_position_embeddings": 4096,
}  # fmt: skip
_CODES, _FIRST = 8192, 1000


def model(shape: Shape) -> UnifiedVLM:
    """The network with token layouts; MID's words are those of the tiny tokenizer."""
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    shipped = load_model("chameleon", BASE)
    if shape == "tiny":
        return shipped
    config = AutoConfig.from_pretrained(BASE)
    words = {k: v for k, v in config.vocabulary_map.items() if not k.startswith("IMGIMG")}
    codes = {image_token_name(code): _FIRST + code for code in range(_CODES)}
    config.update(_MID | {"vocabulary_map": words | codes})
    torch.manual_seed(0)
    network = ChameleonForConditionalGeneration(config)
    with torch.no_grad():
        network.lm_head.weight.mul_(30)  # else every logit is nearly equal, and ties decide
    tokens = Tokens(
        shipped.tokens._tokenizer,
        shipped.tokens.prompts,
        image_ids=torch.arange(_FIRST, _FIRST + _CODES),
        boi=shipped.tokens.boi,
        eoi=shipped.tokens.eoi,
        num_image_tokens=256 if shape == "mid" else 1024,
    )
    images: Any = SimpleNamespace(num_codes=_CODES)
    return UnifiedVLM(BASE, network, images, tokens, "cpu")


def frames(vlm: UnifiedVLM, num: int) -> np.ndarray:
    """Random codes [num, L]."""
    shape = num, vlm.tokens.num_image_tokens
    return np.random.default_rng(0).integers(0, vlm.images.num_codes, shape)


def without_mask(vlm: UnifiedVLM) -> Any:
    """The network of transformers, which draws no code before its list of codes is emptied."""
    network = vlm.causal_lm
    network.model.vocabulary_mapping.__dict__["image_tokens"] = []
    return network


def run(
    name: str, cases: Callable[[Size], tuple[Cases, Callable[[Mapping[str, Any]], Any]]]
) -> None:
    """Measure the cases in turn, check their results, print and keep the figures.

    Args:
        name: of the benchmark.
        cases: of a size: what to measure, and the check of the results by name, which raises where
            they are not equal and returns what to say of them.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", choices=get_args(Shape), default="tiny")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    size = Size(chosen.shape, chosen.samples)
    measured, check = cases(size)
    seconds: dict[str, list[float]] = {case: [] for case in measured}
    for _ in range(chosen.rounds):
        results = {}
        for case, work in measured.items():
            start = time.thread_time()
            results[case] = work()
            seconds[case].append(time.thread_time() - start)
    equal = check(results)
    medians = {case: float(np.median(found)) for case, found in seconds.items()}
    ours = next(iter(medians.values()))
    git = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    found = {
        "benchmark": name,
        "shape": str(size),
        "rounds": chosen.rounds,
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "commit": subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip(),
        "machine": f"{platform.machine()}, one thread",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "cpu_seconds": medians,
        "of_ours": {case: median / ours for case, median in medians.items()},
        "equal": equal,
    }
    text = json.dumps(found, indent=1) + "\n"
    kept = ROOT / "benchmarks/results" / f"{name}-{size}-{found['date']}.json"
    kept.write_text(text)
    sys.stdout.write(text)
