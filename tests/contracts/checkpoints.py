"""Checkpoint folders of every family in the published layout: real classes, tiny and untrained."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import (
    AddedToken,
    ChameleonConfig,
    ChameleonForConditionalGeneration,
    ChameleonVQVAEConfig,
    GemmaConfig,
    GemmaForCausalLM,
    JanusConfig,
    JanusForConditionalGeneration,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from dynamics.models.chameleon import image_token_name
from dynamics.models.convert_vqgan import convert_vqgan
from dynamics.models.image_tokenizers.vqgan import Vqgan
from dynamics.models.vlm import UnifiedVLM
from dynamics.pretraining.base import BaseRecipe
from tests.bases import write_base
from tests.fakes import WORLD

NUM_CODES = 64
VQ_SIZES: dict[str, Any] = {
    "resolution": 16, "base_channels": 32, "channel_multiplier": [1, 1, 2], "num_res_blocks": 1,
    "latent_channels": 16, "embed_dim": 8, "num_embeddings": NUM_CODES,
}  # fmt: skip
LANGUAGE: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One kind of folder that a family must load."""

    family: str
    build: Callable[[Path], None]
    """Writes the checkpoint into an empty folder."""
    reference: Callable[[UnifiedVLM, Tensor], Tensor]
    """Logits [B, T, V] of ids [B, T] through transformers' own forward."""
    controls: tuple[str, ...]
    """Names of control tokens that text may not become."""


def text_tokenizer(
    names: Sequence[str], special: Sequence[str], roles: dict[str, str], plain: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """A byte tokenizer whose first words are ``names`` in this order.

    ``plain`` names are added tokens that are not special.
    """
    words = [*names, *sorted(ByteLevel.alphabet())]
    backend = Tokenizer(BPE({word: index for index, word in enumerate(words)}, []))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, additional_special_tokens=list(special), **roles
    )
    tokenizer.add_tokens([AddedToken(name, special=False) for name in plain])
    return tokenizer


def random_vqgan() -> Vqgan:
    """With a codebook as wide as the features, so that frames use many codes."""
    model = Vqgan(ChameleonVQVAEConfig(**VQ_SIZES)).requires_grad_(False)
    pixels = torch.rand(8, 3, 16, 16) * 2 - 1
    features = model.features(pixels).flatten(0, 1)
    model.quantize.embedding.weight.copy_(features[torch.randperm(len(features))[:NUM_CODES]])
    return model.eval()


def save_ckpt(model: Vqgan, path: Path) -> None:
    """As taming-transformers' trainer leaves it: more keys than the weights."""
    torch.save({"state_dict": model.state_dict(), "epoch": 3, "global_step": 7}, path)


def build_tiny(folder: Path) -> None:
    write_base(folder, WORLD, BaseRecipe(width=32, layers=2, heads=2, feed_forward=64))


def _chameleon(folder: Path, vqgan: Vqgan) -> ChameleonForConditionalGeneration:
    """Published id layout: image ids from 4 on, in another order than the codes."""
    torch.manual_seed(0)
    order = np.random.default_rng(0).permutation(NUM_CODES)
    controls = ["<eoss>", "<racm3:break>", "<reserved08706>", "<image>"]
    names = ["<s>", "<pad>", "</s>", "<unk>", *map(image_token_name, order), *controls]
    roles = {
        "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>",
        "sep_token": "<reserved08706>",
    }  # fmt: skip
    tokenizer = text_tokenizer(names, [], roles, plain=controls[:2])
    tokenizer.save_pretrained(folder)
    vocabulary = tokenizer.get_vocab()
    config = ChameleonConfig(
        vocab_size=len(vocabulary), vocabulary_map=vocabulary, vq_config=VQ_SIZES, **LANGUAGE
    )
    network = ChameleonForConditionalGeneration(config)
    network.model.vqmodel.load_state_dict(vqgan.state_dict(), strict=False)
    return network


def build_anole(folder: Path) -> None:
    """The decoder lies within the checkpoint, in shards."""
    torch.manual_seed(1)
    vqgan = random_vqgan()
    network = _chameleon(folder, vqgan)
    network.model.vqmodel.decoder = vqgan.decoder
    network.save_pretrained(folder, max_shard_size="200KB")


def build_chameleon(folder: Path) -> None:
    """The checkpoint has no decoder; the converted VQGAN lies beside it."""
    torch.manual_seed(1)
    vqgan = random_vqgan()
    _chameleon(folder, vqgan).save_pretrained(folder)
    save_ckpt(vqgan, folder / "vqgan.ckpt")
    convert_vqgan(folder / "vqgan.ckpt", folder, vqgan.config)


def build_liquid(folder: Path) -> None:
    torch.manual_seed(2)
    names = [
        "<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "[multimodal]", "<unused6>", "<boi>",
        "<eoi>", "<unconditional>", "<start_of_turn>", "<end_of_turn>",
    ]  # fmt: skip
    roles = {
        "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>",
    }  # fmt: skip
    tokenizer = text_tokenizer(names, names[-2:], roles, plain=names[7:10])
    tokenizer.save_pretrained(folder)
    config = GemmaConfig(vocab_size=len(tokenizer) + NUM_CODES, head_dim=16, **LANGUAGE)
    GemmaForCausalLM(config).save_pretrained(folder)
    vqgan = random_vqgan()
    save_ckpt(vqgan, folder / "vqgan.ckpt")
    convert_vqgan(folder / "vqgan.ckpt", folder, vqgan.config)


def build_janus(folder: Path) -> None:
    torch.manual_seed(3)
    names = [
        "<bos>", "<eos>", "<pad>", "<|User|>", "<|Assistant|>", "<begin_of_image>",
        "<end_of_image>", "<image_placeholder>",
    ]  # fmt: skip
    roles = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    tokenizer = text_tokenizer(names, names[3:], roles)
    tokenizer.save_pretrained(folder)
    sizes = ("base_channels", "channel_multiplier", "num_res_blocks", "latent_channels")
    config = JanusConfig(
        text_config=LlamaConfig(vocab_size=len(tokenizer) + 5, **LANGUAGE).to_dict(),
        vision_config={
            "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16,
            "patch_size": 4, "projection_dim": 32, "num_image_tokens": 16,
        },
        vq_config={
            **{name: VQ_SIZES[name] for name in sizes}, "embed_dim": 8, "projection_dim": 32,
            "num_embeddings": NUM_CODES, "image_token_embed_dim": 32,
        },
        tie_word_embeddings=False,
    )  # fmt: skip
    JanusForConditionalGeneration(config).save_pretrained(folder)


def janus_forward(model: UnifiedVLM, ids_BT: Tensor) -> Tensor:
    """transformers' own forward, with the embeddings and the head of its image generation."""
    network = model.network
    first = int(model.image_ids[0])
    drawn = network.prepare_embeddings_for_image_generation((ids_BT - first).clamp(min=0))
    words = network.get_input_embeddings()(ids_BT.clamp(max=first - 1))
    embeds = torch.where((ids_BT >= first)[..., None], drawn, words)
    hidden = network.model(inputs_embeds=embeds).last_hidden_state
    said = network(inputs_embeds=embeds).logits
    return torch.cat([said, network.model.generation_head(hidden)], dim=-1)


def own_forward(model: UnifiedVLM, ids_BT: Tensor) -> Tensor:
    """transformers' own forward of a language model with one vocabulary."""
    logits: Tensor = model.network(input_ids=ids_BT).logits
    return logits


CHAMELEON_CONTROLS = ("<eoss>", "<racm3:break>", "<image>", image_token_name(3))
CASES = {
    "tiny": Case("chameleon", build_tiny, own_forward, CHAMELEON_CONTROLS),
    "anole": Case("chameleon", build_anole, own_forward, CHAMELEON_CONTROLS),
    "chameleon": Case("chameleon", build_chameleon, own_forward, CHAMELEON_CONTROLS),
    "liquid": Case(
        "liquid",
        build_liquid,
        own_forward,
        ("<boi>", "<eoi>", "<unconditional>", "<start_of_turn>", "<eos>"),
    ),
    "janus": Case(
        "janus", build_janus, janus_forward, ("<begin_of_image>", "<|User|>", "<image_placeholder>")
    ),
}
