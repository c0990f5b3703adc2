"""Liquid (Junfeng5/Liquid_V1_7B): a Gemma whose last rows are the codes of Chameleon's VQGAN.

The folder has no image tokenizer: ``dynamics convert-vqgan vqgan.ckpt FOLDER`` adds it. Code c has
the id (text rows + c), 256,000 + c in the published checkpoint; the names of three unused words
were given to the tokens around images.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import GemmaConfig, GemmaForCausalLM

from dynamics.core.errors import UserError
from dynamics.models import VQGAN_ADDRESS
from dynamics.models.checkpoint import check_model_type, read_network, read_tokenizer, token_id
from dynamics.models.image_tokenizer import ImageTokenizer
from dynamics.models.image_tokenizers.vqgan import load_vqgan, vqgan_tokenizer
from dynamics.models.tokens import Prompts, Tokens
from dynamics.models.vlm import UnifiedVLM
from dynamics.models.wordings import FDP_WORDINGS, IDM_WORDINGS

PROMPTS = Prompts(
    version="liquid-2",
    fdp=tuple(f"{{source}}\n{wording} {{action}}" for wording in FDP_WORDINGS),
    idm=tuple(
        f"{{<start_of_turn>}}user\n{{source}}{{target}}\n{wording}{{<end_of_turn>}}\n"
        "{<start_of_turn>}model\n"
        for wording in IDM_WORDINGS
    ),
    action_tokens=40,
)
"""The layouts of SWIRL (arXiv 2602.06130), the successor of 2506.06006 that trains Liquid: a plain
sequence for the FDP, a chat turn for the IDM."""

BACKGROUND = (122, 116, 104)
"""RGB of the bars with which Liquid squares its pictures."""


def load(base: Path, device: str) -> UnifiedVLM:
    """The unified VLM of a folder; see `dynamics.models.family.Family`."""
    check_model_type(base, "gemma")
    images = load_image_tokenizer(base, device)
    network = read_network(base, GemmaForCausalLM)
    return UnifiedVLM(base, network, images, load_tokens(base, images), device)


def load_image_tokenizer(base: Path, device: str) -> ImageTokenizer:
    """Chameleon's VQGAN, from the files that ``dynamics convert-vqgan`` wrote.

    Raises:
        UserError: they are missing.
    """
    model = load_vqgan(base)
    if model is None:
        raise UserError(
            f"{base} has no image tokenizer; get vqgan.ckpt ({VQGAN_ADDRESS}) and run "
            f"dynamics convert-vqgan vqgan.ckpt {base}"
        )
    return vqgan_tokenizer(model, device, BACKGROUND)


def load_tokens(base: Path, images: ImageTokenizer) -> Tokens:
    """The checkpoint's token layouts.

    Raises:
        UserError: the vocabulary has no room for the image codes.
    """
    tokenizer = read_tokenizer(base)
    config: Any = GemmaConfig.from_pretrained(base)
    vocabulary_size: int = config.vocab_size
    first = vocabulary_size - images.num_codes
    if len(tokenizer) > first:
        raise UserError(
            f"{base} has {vocabulary_size:,} rows, no room for {images.num_codes:,} image codes "
            f"after {len(tokenizer):,} words: it is a plain Gemma, not Liquid"
        )
    boi, eoi, unconditional = (
        token_id(base, tokenizer, name) for name in ("<boi>", "<eoi>", "<unconditional>")
    )
    return Tokens(
        tokenizer,
        Prompts.load(base, PROMPTS),
        image_ids=torch.arange(first, vocabulary_size),
        boi=boi,
        eoi=eoi,
        num_image_tokens=images.num_tokens,
        controls=(unconditional,),
        no_action=(unconditional,),
    )
