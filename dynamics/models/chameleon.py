"""Chameleon, Anole, and the tiny checkpoint: transformers' `ChameleonForConditionalGeneration`.

The files of a folder say which image tokenizer it has:

- ``image_tokenizer.json``: the tiny FSQ tokenizer, with this project's own prompts beside it;
- ``vqgan.json``: the published VQGAN as ``dynamics convert-vqgan`` wrote it, in full precision;
- neither: the VQGAN within the checkpoint. facebook/chameleon-7b holds no decoder there (its
  conversion left it out), Anole's conversion kept it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import ChameleonConfig, ChameleonForConditionalGeneration, ChameleonVQVAEConfig

from dynamics.core.errors import UserError
from dynamics.models import VQGAN_ADDRESS
from dynamics.models.checkpoint import (
    check_model_type,
    read_network,
    read_tokenizer,
    read_weights,
)
from dynamics.models.image_tokenizer import ImageTokenizer
from dynamics.models.image_tokenizers.fsq import CONFIG_FILE as FSQ_CONFIG
from dynamics.models.image_tokenizers.fsq import FsqTokenizer
from dynamics.models.image_tokenizers.vqgan import (
    VqganDecoder,
    load_vqgan,
    vqgan_from,
    vqgan_tokenizer,
)
from dynamics.models.tokens import Prompts, Tokens
from dynamics.models.vlm import UnifiedVLM
from dynamics.models.wordings import FDP_WORDINGS, IDM_WORDINGS

PROMPTS = Prompts(
    version="chameleon-2",
    fdp=tuple(f"{{source}}\n{wording} {{action}}" for wording in FDP_WORDINGS),
    idm=tuple(f"{{source}}{{target}}\n{wording}{{<reserved08706>}}" for wording in IDM_WORDINGS),
    action_tokens=40,
)
"""For published checkpoints. The paper prints no prompts: the FDP's is the plain sequence of its
successor (see `dynamics.models.liquid`); ``<reserved08706>`` is the token with which Chameleon's
own processor ends a user's turn."""

_VQ = "model.vqmodel."


def load(base: Path, device: str) -> UnifiedVLM:
    """The unified VLM of a folder; see `dynamics.models.family.Family`."""
    images = load_image_tokenizer(base, device)
    network = load_network(base)
    return UnifiedVLM(base, network, images, load_tokens(base, images), device)


def load_network(base: Path) -> ChameleonForConditionalGeneration:
    """The language model, in the precision of its files, with the VQGAN weights among them.

    Raises:
        UserError: the folder is missing, incomplete, or holds another model.
    """
    check_model_type(base, "chameleon")
    network: ChameleonForConditionalGeneration = read_network(
        base, ChameleonForConditionalGeneration
    )
    decoder = read_weights(base, _VQ + "decoder.")
    if decoder:
        # transformers drops what its class has no place for; a checkpoint that is saved from this
        # network must still be able to draw.
        module = VqganDecoder(_vq_config(base))
        module.load_state_dict(decoder)
        network.model.vqmodel.decoder = module.to(network.dtype)
    return network


def load_image_tokenizer(base: Path, device: str = "cpu") -> ImageTokenizer:
    """The folder's image tokenizer, see the list above.

    Raises:
        UserError: there is no decoder, or the VQGAN is not the one the checkpoint was trained with.
    """
    if (base / FSQ_CONFIG).is_file():
        return FsqTokenizer.load(base)
    check_model_type(base, "chameleon")
    model = load_vqgan(base)
    if model is None:
        weights = read_weights(base, _VQ)
        if not any(name.startswith("decoder.") for name in weights):
            raise UserError(
                f"{base} has no image decoder; get vqgan.ckpt ({VQGAN_ADDRESS}) and run "
                f"dynamics convert-vqgan vqgan.ckpt {base}"
            )
        model = vqgan_from(base, _vq_config(base), weights)
    else:
        _check_same_codebook(base, model.quantize.embedding.weight)
    return vqgan_tokenizer(model, device)


def _vq_config(base: Path) -> ChameleonVQVAEConfig:
    config: Any = ChameleonConfig.from_pretrained(base)
    sizes: ChameleonVQVAEConfig = config.vq_config
    return sizes


def _check_same_codebook(base: Path, codebook_KD: Tensor) -> None:
    """Refuse another VQGAN, whose codes would mean nothing to the language model."""
    own = read_weights(base, _VQ + "quantize.").get("embedding.weight", torch.empty(0))
    # The checkpoint's copy is rounded to half precision.
    if own.shape != codebook_KD.shape or not torch.allclose(own, codebook_KD, rtol=1e-2, atol=1e-4):
        raise UserError(f"the vqgan files in {base} are not the VQGAN of this checkpoint")


def load_tokens(base: Path, images: ImageTokenizer) -> Tokens:
    """The checkpoint's token layouts."""
    config: Any = ChameleonConfig.from_pretrained(base)
    default = None if isinstance(images, FsqTokenizer) else PROMPTS
    return chameleon_tokens(
        read_tokenizer(base), config.vocabulary_map, Prompts.load(base, default), images.num_tokens
    )


def chameleon_tokens(
    tokenizer: Any, vocabulary: Mapping[str, int], prompts: Prompts, num_image_tokens: int
) -> Tokens:
    """Token layouts with the ids of a Chameleon vocabulary."""
    return Tokens(
        tokenizer,
        prompts,
        image_ids=image_ids(vocabulary),
        boi=vocabulary["<racm3:break>"],
        eoi=vocabulary["<eoss>"],
        num_image_tokens=num_image_tokens,
    )


def image_ids(vocabulary: Mapping[str, int]) -> Tensor:
    """Vocabulary id per code, from Chameleon's names: ``IMGIMG`` + digits as letters A-J + ``Z``.

    Meta's own code takes them from the map, too; nothing promises that they are code + constant.
    """
    digits = str.maketrans("ABCDEFGHIJ", "0123456789")
    by_code = {
        int(name.removeprefix("IMGIMG")[:-1].translate(digits)): token
        for name, token in vocabulary.items()
        if name.startswith("IMGIMG")
    }
    if sorted(by_code) != list(range(len(by_code))) or not by_code:
        raise UserError("the checkpoint's vocabulary_map has no complete set of IMGIMG tokens")
    return torch.tensor([by_code[code] for code in range(len(by_code))])


def image_token_name(code: int) -> str:
    """Chameleon's name of a code; inverse of `image_ids`."""
    return "IMGIMG" + str(code).translate(str.maketrans("0123456789", "ABCDEFGHIJ")) + "Z"
