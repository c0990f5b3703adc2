"""Codes and recognition features of pairs of frames, against transformers' `ChameleonVQVAE`.

python -m benchmarks vq                # 32 px, a small network
python -m benchmarks vq --shape mid    # 256 px, a quarter of the published one's width
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from transformers import ChameleonVQVAE, ChameleonVQVAEConfig

from benchmarks.encode import TINY, pictures
from benchmarks.engine_frame import Cases, Size, run
from dynamics.data.units import EncodeWorker
from dynamics.models.image_tokenizers.vqgan import Vqgan, vqgan_tokenizer

_FRAMES = 8
"""Frames of a clip, of which each but the last begins a pair."""


def cases(size: Size) -> tuple[Cases, Callable[[Mapping[str, Any]], Any]]:
    """Ours, and transformers' codes alone: both frames of every pair, each once, one batch."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    sizes = TINY if size.shape == "tiny" else {"resolution": 256, "base_channels": 32}
    config = ChameleonVQVAEConfig(**sizes)
    network: Any = ChameleonVQVAE(config).eval().requires_grad_(False)
    own = Vqgan(config)
    own.load_state_dict(network.state_dict(), strict=False)
    images: Any = vqgan_tokenizer(own.eval().requires_grad_(False), "cpu")
    frames = pictures(_FRAMES, config.resolution)
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1
    worker = EncodeWorker(lambda: images, None, None)  # type: ignore[arg-type]  # only encodes

    @torch.inference_mode()
    def codes(pixels: torch.Tensor, at_once: int) -> np.ndarray:
        parts = [network.encode(part).image_tokens for part in torch.split(pixels, at_once)]
        return torch.cat([part.view(-1, images.num_tokens) for part in parts]).numpy()

    def pairs() -> np.ndarray:
        both = torch.cat([pixels[:-1], pixels[1:]])
        found = codes(both, 1)
        return np.concatenate([found[: _FRAMES - 1], found[-1:]])

    def check(results: Mapping[str, Any]) -> str:
        ours, *others = results.values()
        if any((ours != other).any() for other in others):
            raise SystemExit("the codes differ")
        return "all codes; ours has the features, too"

    return {
        "codes and features, each frame once": lambda: worker._encoded(frames)[0],
        "transformers, both frames of a pair": pairs,
        "transformers, each frame once": lambda: codes(pixels, 1),
        "transformers, one batch": lambda: codes(pixels, _FRAMES),
    }, check


if __name__ == "__main__":
    run("vq", cases)
