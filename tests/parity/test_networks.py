"""Networks against the published ones, written out in our own words over the same weights.

B rows, T positions, L codes a frame, D width, H heads, K width of a head.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dynamics.models import load_image_tokenizer, load_model
from dynamics.models.vlm import UnifiedVLM
from tests.contracts.checkpoints import CASES, VQ_SIZES

Weights = Mapping[str, Tensor]
LEVELS, BLOCKS = len(VQ_SIZES["channel_multiplier"]), VQ_SIZES["num_res_blocks"]


def conv(w: Weights, name: str, x: Tensor, **how: int) -> Tensor:
    return functional.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], **how)


def norm(w: Weights, name: str, x: Tensor) -> Tensor:
    return functional.group_norm(x, 32, w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-6)


def residual(w: Weights, name: str, x: Tensor) -> Tensor:
    inner = conv(w, f"{name}.conv1", functional.silu(norm(w, f"{name}.norm1", x)), padding=1)
    inner = conv(w, f"{name}.conv2", functional.silu(norm(w, f"{name}.norm2", inner)), padding=1)
    if f"{name}.nin_shortcut.weight" in w:
        x = conv(w, f"{name}.nin_shortcut", x)
    return x + inner


def attention(w: Weights, name: str, x: Tensor) -> Tensor:
    normed = norm(w, f"{name}.norm", x)
    q, k, v = (conv(w, f"{name}.{one}", normed).flatten(2) for one in "qkv")
    shares = torch.softmax(q.transpose(1, 2) @ k / x.shape[1] ** 0.5, dim=-1)
    return x + conv(w, f"{name}.proj_out", (v @ shares.transpose(1, 2)).view_as(x))


def middle(w: Weights, side: str, x: Tensor) -> Tensor:
    x = attention(w, f"{side}.mid.attn_1", residual(w, f"{side}.mid.block_1", x))
    return residual(w, f"{side}.mid.block_2", x)


def level_blocks(w: Weights, level: str, x: Tensor, count: int) -> Tensor:
    """Residual blocks; of LlamaGen's coarsest level each with an attention behind it."""
    for block in range(count):
        x = residual(w, f"{level}.block.{block}", x)
        if f"{level}.attn.{block}.q.weight" in w:
            x = attention(w, f"{level}.attn.{block}", x)
    return x


def encoded(w: Weights, pixels_B3HW: Tensor) -> Tensor:
    """Features [B, L, D] of taming-transformers' encoder, which LlamaGen's is, too."""
    x = conv(w, "encoder.conv_in", pixels_B3HW, padding=1)
    for level in range(LEVELS):
        x = level_blocks(w, f"encoder.down.{level}", x, BLOCKS)
        if level < LEVELS - 1:
            padded = functional.pad(x, (0, 1, 0, 1))
            x = conv(w, f"encoder.down.{level}.downsample.conv", padded, stride=2)
    x = functional.silu(norm(w, "encoder.norm_out", middle(w, "encoder", x)))
    x = conv(w, "encoder.conv_out", x, padding=1)
    return conv(w, "quant_conv", x).flatten(2).transpose(1, 2)


def decoded(w: Weights, entries_BLD: Tensor, *, finest_first: bool) -> Tensor:
    """Pixels [B, 3, H, W] of codebook entries."""
    side = round(entries_BLD.shape[1] ** 0.5)
    x = conv(w, "post_quant_conv", entries_BLD.transpose(1, 2).unflatten(2, (side, side)))
    x = middle(w, "decoder", conv(w, "decoder.conv_in", x, padding=1))
    for level in reversed(range(LEVELS)):
        name = f"decoder.up.{level if finest_first else LEVELS - 1 - level}"
        x = level_blocks(w, name, x, BLOCKS + 1)
        if level:
            doubled = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
            x = conv(w, f"{name}.upsample.conv", doubled, padding=1)
    return conv(w, "decoder.conv_out", functional.silu(norm(w, "decoder.norm_out", x)), padding=1)


@pytest.mark.parametrize("name", ["anole", "liquid", "janus"])
@torch.inference_mode()
def test_codes_and_pixels_are_those_of_the_published_vq_model(name: str, tmp_path: Path) -> None:
    CASES[name].build(tmp_path)
    images = load_image_tokenizer(CASES[name].family, tmp_path)
    weights = {
        key.removeprefix("_network."): value for key, value in images._model.state_dict().items()
    }
    frames = np.random.default_rng(0).integers(0, 256, (16, 16, 16, 3), dtype=np.uint8)
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2) / 255 * 2 - 1
    features, codebook = encoded(weights, pixels), weights["quantize.embedding.weight"]
    if name == "janus":  # LlamaGen searches and draws on the unit sphere
        features, codebook = (
            functional.normalize(features, dim=-1),
            functional.normalize(codebook, dim=-1),
        )
    theirs = torch.cdist(features, codebook[None]).argmin(-1)
    assert len(theirs.unique()) > 8
    codes = images.encode(frames)
    assert np.array_equal(codes, theirs.numpy())
    drawn = decoded(weights, codebook[theirs], finest_first=name != "janus")
    levels = ((drawn.clamp(-1, 1) + 1) / 2 * 255).permute(0, 2, 3, 1)
    assert abs(images.decode(codes).astype(int) - levels.byte().numpy()).max() <= 1


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def pairs_together(weight: Tensor, heads: int) -> Tensor:
    """Rows in Meta's order, in which the two numbers that turn together are neighbours."""
    return weight.reshape(heads, 2, -1, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


def turned_pairs(x_BTHK: Tensor, base: float) -> Tensor:
    """Rotary positions as Meta computes them: neighbours are a complex number."""
    width = x_BTHK.shape[-1]
    rates = base ** (-torch.arange(0, width, 2) / width)
    angles_TK = torch.arange(x_BTHK.shape[1])[:, None] * rates
    turn = torch.polar(torch.ones_like(angles_TK), angles_TK)[:, None]
    numbers = torch.view_as_complex(x_BTHK.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(numbers * turn).flatten(-2)


def spoken(w: Weights, config: Any, ids_BT: Tensor) -> Tensor:
    """Logits of Meta's Chameleon (norms of q and k a head), or of Google's Gemma (1 + weights)."""
    is_gemma = config.model_type == "gemma"
    heads, eps = config.num_attention_heads, config.rms_norm_eps
    base = config.rope_parameters["rope_theta"]
    act = (lambda x: functional.gelu(x, approximate="tanh")) if is_gemma else functional.silu
    embedding = w["model.embed_tokens.weight"]
    x = embedding[ids_BT] * (embedding.shape[1] ** 0.5 if is_gemma else 1.0)

    def normed(name: str, x: Tensor) -> Tensor:
        return rms(x, w[f"{name}.weight"] + is_gemma, eps)

    def projected(layer: str, which: str, x: Tensor) -> Tensor:
        weight = pairs_together(w[f"{layer}.self_attn.{which}_proj.weight"], heads)
        out_BTHK = (x @ weight.T).unflatten(-1, (heads, -1))
        if not is_gemma:
            scale, shift = (
                pairs_together(w[f"{layer}.self_attn.{which}_norm.{one}"].flatten(), heads)
                for one in ("weight", "bias")
            )
            out_BTHK = functional.layer_norm(out_BTHK, out_BTHK.shape[-1:], eps=1e-5)
            out_BTHK = out_BTHK * scale.view(heads, -1) + shift.view(heads, -1)
        return turned_pairs(out_BTHK, base).transpose(1, 2)

    for number in range(2):
        layer = f"model.layers.{number}"
        y = normed(f"{layer}.input_layernorm", x)
        q, k = (projected(layer, which, y) for which in "qk")
        v = (y @ w[f"{layer}.self_attn.v_proj.weight"].T).unflatten(-1, (heads, -1))
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(later, -torch.inf)
        mixed = (scores.softmax(-1) @ v.transpose(1, 2)).transpose(1, 2).flatten(2)
        x = x + mixed @ w[f"{layer}.self_attn.o_proj.weight"].T
        y = normed(f"{layer}.post_attention_layernorm", x)
        gate, up = (y @ w[f"{layer}.mlp.{one}_proj.weight"].T for one in ("gate", "up"))
        x = x + (act(gate) * up) @ w[f"{layer}.mlp.down_proj.weight"].T
    return normed("model.norm", x) @ w["lm_head.weight"].T


def shaken(model: UnifiedVLM) -> dict[str, Tensor]:
    """The weights, none of which is a plain one or zero any more."""
    torch.manual_seed(5)
    for parameter in model.network.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.05)
    return {
        name.replace("model.language_model.", "model."): value
        for name, value in model.network.state_dict().items()
    }


@pytest.mark.parametrize("name", ["anole", "liquid"])
@torch.inference_mode()
def test_logits_are_those_of_the_published_language_model(name: str, tmp_path: Path) -> None:
    CASES[name].build(tmp_path)
    model = load_model(CASES[name].family, tmp_path)
    weights = shaken(model)
    codes = np.random.default_rng(0).integers(0, 64, (2, model.images.num_tokens))
    ids = model.tokens.fdp_rows(codes, ["push it"] * 2, codes[::-1].copy()).ids
    theirs = spoken(weights, model.network.config.get_text_config(), ids)
    assert torch.allclose(model.logits(model.hidden(ids)), theirs, atol=2e-4)
