"""Chameleon's VQGAN, encoder and decoder: the image tokenizer of Chameleon, Anole and Liquid.

The encoder, codebook and convolutions around it are transformers' `ChameleonVQVAE`. It has no
decoder, so one is added here, from the same blocks and under the names of the published
``vqgan.ckpt``: its weights are then taken over name by name, with nothing to translate. The other
candidates were transformers' `JanusVQVAE` (its decoder has attention blocks that Chameleon's lacks
and counts its levels the other way round, and its codebook look-up normalises vectors, which
Chameleon's must not) and diffusers' `VQModel` (other names throughout, and a dependency).

`ChameleonVQVAE.encode` returns features from before ``quant_conv``; the codebook, and the paper's
recognition loss, want those after it.

B rows, L codes a frame, D code width, C channels, H = W = frame pixels.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from transformers import ChameleonVQVAE, ChameleonVQVAEConfig
from transformers.models.chameleon.modeling_chameleon import (
    ChameleonVQVAEEncoderAttnBlock,
    ChameleonVQVAEEncoderResnetBlock,
)

from dynamics.core.errors import UserError
from dynamics.core.text_files import read_json_object
from dynamics.models.checkpoint import check_shapes, read_tensors
from dynamics.models.image_tokenizers.vq import VqTokenizer

VQGAN_CONFIG = "vqgan.json"
VQGAN_WEIGHTS = "vqgan.safetensors"
SIZES = (
    "resolution", "in_channels", "base_channels", "channel_multiplier", "num_res_blocks",
    "attn_type", "latent_channels", "embed_dim", "num_embeddings",
)  # fmt: skip
"""The fields of `ChameleonVQVAEConfig` that decide shapes; ``vqgan.json`` holds exactly these."""


# transformers' layers are not typed.
_Residual: Any = ChameleonVQVAEEncoderResnetBlock
_Attention: Any = ChameleonVQVAEEncoderAttnBlock


class VqganDecoder(nn.Module):
    """Latents [B, C, h, w] to pixels [B, 3, H, W]; parameter names are those of ``vqgan.ckpt``."""

    def __init__(self, config: ChameleonVQVAEConfig) -> None:
        super().__init__()
        widths = [config.base_channels * times for times in config.channel_multiplier]
        width = widths[-1]
        self.conv_in = nn.Conv2d(config.latent_channels, width, 3, padding=1)
        self.mid = nn.Module()
        self.mid.block_1 = _Residual(config, width, width)
        self.mid.attn_1 = _Attention(width) if config.attn_type == "vanilla" else nn.Identity()
        self.mid.block_2 = _Residual(config, width, width)
        levels: list[nn.Module] = []
        for level in reversed(range(len(widths))):
            up = nn.Module()
            up.block = nn.ModuleList()
            for _ in range(config.num_res_blocks + 1):
                up.block.append(_Residual(config, width, widths[level]))
                width = widths[level]
            if level:
                up.upsample = nn.Module()
                up.upsample.conv = nn.Conv2d(width, width, 3, padding=1)
            levels.insert(0, up)  # level 0 is the finest, and the last one run
        self.up = nn.ModuleList(levels)
        self.norm_out = nn.GroupNorm(32, width, eps=1e-6)
        self.conv_out = nn.Conv2d(width, config.in_channels, 3, padding=1)

    def forward(self, latents_BChw: Tensor) -> Tensor:
        """Pixels, about -1..1."""
        mid: Any = self.mid
        x = mid.block_2(mid.attn_1(mid.block_1(self.conv_in(latents_BChw))))
        level: Any
        for level in reversed(self.up):
            for block in level.block:
                x = block(x)
            if hasattr(level, "upsample"):
                x = level.upsample.conv(interpolate(x, scale_factor=2.0, mode="nearest"))
        pixels: Tensor = self.conv_out(nn.functional.silu(self.norm_out(x)))
        return pixels


class Vqgan(nn.Module):
    """transformers' VQGAN with the decoder it lacks; implements `vq.VqModel`."""

    def __init__(self, config: ChameleonVQVAEConfig) -> None:
        super().__init__()
        published: Any = ChameleonVQVAE(config)
        self.config = config
        self.encoder = published.encoder
        self.quantize = published.quantize
        self.quant_conv = published.quant_conv
        self.post_quant_conv = published.post_quant_conv
        self.decoder = VqganDecoder(config)

    def features(self, pixels_B3HW: Tensor) -> Tensor:
        """Vectors to look up in the codebook, [B, L, D]."""
        latents: Tensor = self.quant_conv(self.encoder(pixels_B3HW))
        return latents.flatten(2).transpose(1, 2)

    def codes(self, features_BLD: Tensor) -> Tensor:
        """Nearest code of each feature, int64 [B, L]."""
        _, _, indices = self.quantize(features_BLD.transpose(1, 2)[..., None])
        codes: Tensor = indices.reshape(features_BLD.shape[:2])
        return codes

    def pixels(self, codes_BL: Tensor) -> Tensor:
        """Codes to pixels [B, 3, H, W], about -1..1."""
        side = round(codes_BL.shape[1] ** 0.5)
        entries = self.quantize.embedding(codes_BL).transpose(1, 2).unflatten(2, (side, side))
        pixels: Tensor = self.decoder(self.post_quant_conv(entries))
        return pixels


def empty_vqgan(config: ChameleonVQVAEConfig) -> Vqgan:
    """The module on the meta device: names and shapes without memory."""
    with torch.device("meta"):
        return Vqgan(config)


def vqgan_from(source: Path, config: ChameleonVQVAEConfig, weights: dict[str, Tensor]) -> Vqgan:
    """A frozen VQGAN of given weights, which must be exactly those of its sizes.

    Raises:
        UserError: other names or shapes.
    """
    model = empty_vqgan(config)
    check_shapes(source, weights, model)
    model.load_state_dict(weights, assign=True)
    return model.eval().requires_grad_(False)


def load_vqgan(folder: Path) -> Vqgan | None:
    """The VQGAN that ``dynamics convert-vqgan`` wrote into a folder, None without one.

    Raises:
        UserError: the files are damaged or do not belong together.
    """
    if not (folder / VQGAN_CONFIG).is_file():
        return None
    raw = read_json_object(folder / VQGAN_CONFIG)
    if set(raw) != set(SIZES):
        raise UserError(f"{folder / VQGAN_CONFIG} must have exactly the fields {', '.join(SIZES)}")
    weights = read_tensors(folder / VQGAN_WEIGHTS)
    return vqgan_from(folder / VQGAN_WEIGHTS, ChameleonVQVAEConfig(**raw), weights)


def vqgan_tokenizer(
    model: Vqgan, device: str, bars: tuple[int, int, int] | None = None
) -> VqTokenizer:
    """The `dynamics.models.image_tokenizer.ImageTokenizer` over a VQGAN, on ``device``."""
    config = model.config
    side = config.resolution // 2 ** (len(config.channel_multiplier) - 1)
    return VqTokenizer(
        model.to(device),
        frame_px=config.resolution,
        num_tokens=side * side,
        num_codes=config.num_embeddings,
        bars=bars,
        device=device,
    )
