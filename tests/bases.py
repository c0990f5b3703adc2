"""Untrained bases of the tabletop, of any size."""

from pathlib import Path
from typing import Any

from dynamics.core.config import WorldConfig
from dynamics.models.image_tokenizers.fsq import FsqAutoencoder, FsqConfig, FsqTokenizer
from dynamics.pretraining.base import BaseRecipe, build_network
from dynamics.pretraining.make import write_checkpoint
from dynamics.pretraining.vocabulary import build_tokenizer, prompts
from dynamics.tabletop.pretraining.corpus import TASK_WORDS, tabletop_words


def write_base(folder: Path, world: WorldConfig, sizes: BaseRecipe) -> None:
    """A checkpoint at random initialisation."""
    images = FsqTokenizer(FsqAutoencoder(FsqConfig(frame_px=world.frame_px, width=8)))
    tokenizer = text_tokenizer(world)
    network = build_network(sizes, tokenizer, images.num_codes)
    write_checkpoint(folder, network, tokenizer, images, prompts(()))


def text_tokenizer(world: WorldConfig) -> Any:
    """The words of the tabletop."""
    return build_tokenizer(TASK_WORDS, tabletop_words(world.grid))
