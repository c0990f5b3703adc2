"""Image codes a second of the published VQGAN, on this machine.

    python benchmarks/encode.py                  # Chameleon's shape, random weights, 512 px, CPU
    python benchmarks/encode.py --device cuda    # on a GPU
    python benchmarks/encode.py --tiny           # seconds; shows that it runs

Speed does not depend on the weights. The share of equal codes in bfloat16 does: with random ones
the codebook's entries lie closer to each other than trained ones, so that it is a lower bound.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from transformers import ChameleonVQVAEConfig

from dynamics.models.image_tokenizers.vq import VqTokenizer
from dynamics.models.image_tokenizers.vqgan import Vqgan, vqgan_tokenizer

TINY = {"resolution": 32, "base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1}
BATCHES = (1, 4, 8, 16)


def tokenizer(device: str, *, tiny: bool) -> VqTokenizer:
    """Random weights; the codebook is made of features, so that frames use many codes."""
    torch.manual_seed(0)
    config = ChameleonVQVAEConfig(**(TINY if tiny else {}))
    model = Vqgan(config).eval().requires_grad_(False).to(device)
    frames = pictures(2, config.resolution)
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float().to(device) / 127.5 - 1
    with torch.inference_mode():
        found = model.features(pixels).flatten(0, 1)
        codebook = model.quantize.embedding.weight
        codebook.copy_(found[torch.randint(len(found), (len(codebook),), device=device)])
        codebook.add_(0.1 * found.std() * torch.randn_like(codebook))
    return vqgan_tokenizer(model, device)


def pictures(num: int, px: int) -> np.ndarray:
    """Smooth random frames, uint8 [num, px, px, 3]."""
    small = np.random.default_rng(0).integers(0, 256, (num, px // 8, px // 8, 3), dtype=np.uint8)
    return small.repeat(8, axis=1).repeat(8, axis=2)


def frames_a_second(run: Callable[[], object], num: int, repeats: int) -> float:
    """Median over the repeats, after one that is not counted."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run()  # results come as numpy arrays: nothing is left to wait for
        seconds.append(time.perf_counter() - start)
    return num / float(np.median(seconds[1:]))


def measure(device: str, num: int, repeats: int, *, tiny: bool) -> dict[str, float]:
    """Frames a second by what is done and how, and the share of codes that bfloat16 keeps."""
    images = tokenizer(device, tiny=tiny)
    frames = pictures(num, images.frame_px)
    found: dict[str, float] = {}
    codes: dict[str, np.ndarray] = {}
    for images.precision in ("float32", "bfloat16"):
        codes[images.precision], _ = images.encode_with_features(frames)
        for batch in (size for size in BATCHES if size <= num):
            images.batch_frames = batch
            name = f"{images.precision} batch {batch}"
            found[f"codes and features, one pass, {name}"] = frames_a_second(
                lambda: images.encode_with_features(frames), num, repeats
            )
            found[f"decode, {name}"] = frames_a_second(
                lambda: images.decode(codes["float32"]), num, repeats
            )
    images.precision, images.batch_frames = "float32", min(4, num)
    found["codes, then features, two passes, float32 batch 4"] = frames_a_second(
        lambda: (images.encode(frames), images.encode_with_features(frames)), num, repeats
    )
    found["share of equal codes, bfloat16"] = float(np.mean(codes["float32"] == codes["bfloat16"]))
    found["distinct codes"] = float(len(np.unique(codes["float32"])))
    return found


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--frames", type=int, help="default: 64 on a GPU, 2 on a CPU")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="32 px, a small network")
    chosen = parser.parse_args()
    num = chosen.frames or (64 if chosen.device == "cuda" else 2)
    where = torch.cuda.get_device_name() if chosen.device == "cuda" else "CPU, one thread"
    if chosen.device == "cpu":
        torch.set_num_threads(1)
    found = measure(chosen.device, num, chosen.repeats, tiny=chosen.tiny)
    sys.stdout.write(json.dumps({"device": where, "frames": num, **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
