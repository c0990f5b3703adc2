"""Published checkpoints cannot be had here; their names and shapes can, on the meta device."""

import torch
from transformers import (
    ChameleonConfig,
    ChameleonForConditionalGeneration,
    ChameleonVQVAEConfig,
    GemmaConfig,
    GemmaForCausalLM,
    JanusConfig,
    JanusForConditionalGeneration,
)

from dynamics.models.image_tokenizers.vqgan import Vqgan, empty_vqgan

VQGAN = {
    "embed_dim": 256, "num_embeddings": 8192, "double_latent": False, "latent_channels": 256,
    "resolution": 512, "in_channels": 3, "base_channels": 128,
    "channel_multiplier": [1, 1, 2, 2, 4], "num_res_blocks": 2, "attn_resolutions": [],
    "dropout": 0.0,
}  # fmt: skip
"""vqgan.yaml of Chameleon; Liquid and Anole use the same file."""
CHAMELEON_7B = {
    "vocab_size": 65536, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5, "swin_norm": False, "vq_config": VQGAN,
    "vocabulary_map": {"<image>": 8711},
}  # fmt: skip
"""facebook/chameleon-7b and Anole-7b."""
LIQUID = {
    "vocab_size": 264192, "hidden_size": 3072, "intermediate_size": 24576, "num_hidden_layers": 28,
    "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 256,
    "max_position_embeddings": 8192,
}  # fmt: skip
"""Junfeng5/Liquid_V1_7B."""

JANUS_PRO_7B = {
    "text_config": {
        "model_type": "llama", "vocab_size": 102400, "hidden_size": 4096,
        "intermediate_size": 11008, "num_hidden_layers": 30, "num_attention_heads": 32,
        "num_key_value_heads": 32, "max_position_embeddings": 16384,
    },
    "vision_config": {"image_size": 384, "patch_size": 16, "projection_dim": 4096},
    "vq_config": {
        "num_embeddings": 16384, "embed_dim": 8, "projection_dim": 4096,
        "image_token_embed_dim": 4096,
    },
    "tie_word_embeddings": False,
}  # fmt: skip
"""deepseek-community/Janus-Pro-7B."""


def shapes(network: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def num_parameters(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def block(name: str, width_in: int, width: int) -> dict[str, tuple[int, ...]]:
    """A residual block of taming-transformers."""
    expected = {
        f"{name}.norm1.weight": (width_in,),
        f"{name}.conv1.weight": (width, width_in, 3, 3),
        f"{name}.norm2.weight": (width,),
        f"{name}.conv2.weight": (width, width, 3, 3),
    }
    if width_in != width:
        expected[f"{name}.nin_shortcut.weight"] = (width, width_in, 1, 1)
    return expected


def middle(side: str) -> dict[str, tuple[int, ...]]:
    attention = {f"{side}.mid.attn_1.{n}.weight": (512, 512, 1, 1) for n in ("q", "k", "v")}
    return {
        **block(f"{side}.mid.block_1", 512, 512),
        **block(f"{side}.mid.block_2", 512, 512),
        **attention,
        f"{side}.mid.attn_1.norm.weight": (512,),
        f"{side}.mid.attn_1.proj_out.weight": (512, 512, 1, 1),
        f"{side}.norm_out.weight": (128,) if side == "decoder" else (512,),
    }


def published_vqgan() -> dict[str, tuple[int, ...]]:
    """The weights (not biases) of vqgan.ckpt, written down level by level."""
    expected = {
        "quantize.embedding.weight": (8192, 256),
        "quant_conv.weight": (256, 256, 1, 1),
        "post_quant_conv.weight": (256, 256, 1, 1),
        "encoder.conv_in.weight": (128, 3, 3, 3),
        "encoder.conv_out.weight": (256, 512, 3, 3),
        "decoder.conv_in.weight": (512, 256, 3, 3),
        "decoder.conv_out.weight": (3, 128, 3, 3),
        **middle("encoder"),
        **middle("decoder"),
    }
    widths = [128, 128, 256, 256, 512]
    for level, (before, width) in enumerate(zip([128, *widths], widths, strict=False)):
        for number in range(2):
            start = width if number else before
            expected |= block(f"encoder.down.{level}.block.{number}", start, width)
        if level < 4:
            expected[f"encoder.down.{level}.downsample.conv.weight"] = (width, width, 3, 3)
    for level, (after, width) in enumerate(zip([*widths[1:], 512], widths, strict=True)):
        for number in range(3):
            start = width if number else after
            expected |= block(f"decoder.up.{level}.block.{number}", start, width)
        if level:
            expected[f"decoder.up.{level}.upsample.conv.weight"] = (width, width, 3, 3)
    return expected


def vqgan() -> Vqgan:
    return empty_vqgan(ChameleonVQVAEConfig(**VQGAN))


def test_the_vqgan_has_the_names_and_shapes_of_the_published_file() -> None:
    found = shapes(vqgan())
    assert {n: s for n, s in found.items() if n.endswith(".weight")} == published_vqgan()
    biases = {n for n in published_vqgan() if n != "quantize.embedding.weight"}
    assert {n for n in found if n.endswith(".bias")} == {
        n.removesuffix("weight") + "bias" for n in biases
    }


def test_chameleon_holds_the_encoder_under_the_same_names() -> None:
    with torch.device("meta"):
        network = ChameleonForConditionalGeneration(ChameleonConfig(**CHAMELEON_7B))
    prefix = "model.vqmodel."
    inside = {n.removeprefix(prefix): s for n, s in shapes(network).items() if prefix in n}
    ours = {n: s for n, s in shapes(vqgan()).items() if not n.startswith("decoder.")}
    assert inside == ours
    assert round(num_parameters(network.model.vqmodel) / 1e6, 1) == 29.4


def test_chameleon_7b_has_its_number_of_parameters() -> None:
    with torch.device("meta"):
        network = ChameleonForConditionalGeneration(ChameleonConfig(**CHAMELEON_7B))
    attention, feed_forward = 4 * 4096**2, 3 * 4096 * 11008
    norms = 2 * 4096 + 2 * 2 * 32 * 128  # per layer, with weight and bias of q and k
    language = 2 * 65536 * 4096 + 32 * (attention + feed_forward + norms) + 4096
    inside = num_parameters(network.model.vqmodel)
    assert num_parameters(network) == language + inside
    assert round(num_parameters(network) / 1e9, 2) == 7.04
    assert shapes(network)["lm_head.weight"] == (65536, 4096)
    assert shapes(network)["model.layers.31.self_attn.q_norm.weight"] == (32, 128)


def test_liquid_has_its_number_of_parameters() -> None:
    with torch.device("meta"):
        network = GemmaForCausalLM(GemmaConfig(**LIQUID))
    attention, feed_forward = 4 * 3072 * 16 * 256, 3 * 3072 * 24576
    expected = 264192 * 3072 + 28 * (attention + feed_forward + 2 * 3072) + 3072
    assert num_parameters(network) == expected
    assert round(expected / 1e9, 2) == 8.56
    assert shapes(network)["lm_head.weight"] == (256_000 + 8192, 3072)


def test_janus_pro_draws_576_codes_with_a_head_of_its_own() -> None:
    config = JanusConfig(**JANUS_PRO_7B)
    assert config.vq_config.num_patches**2 == 576
    with torch.device("meta"):
        network = JanusForConditionalGeneration(config)
    found = shapes(network)
    assert found["lm_head.weight"] == (102400, 4096)
    assert found["model.generation_embeddings.weight"] == (16384, 8)
    assert found["model.generation_aligner.fc1.weight"] == (4096, 8)
    assert found["model.generation_head.vision_head.weight"] == (16384, 4096)
    assert found["model.language_model.layers.29.self_attn.q_proj.weight"] == (4096, 4096)
