"""The published ``vqgan.ckpt`` (Meta's, also Liquid's copy) to safetensors, without running it.

The file is a torch pickle with taming-transformers' names under ``state_dict``. It is unpickled in
torch's weights-only mode, which builds tensors and plain containers and refuses everything else.
"""

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor
from transformers import ChameleonVQVAEConfig

from dynamics.core.errors import UserError
from dynamics.models.image_tokenizers.vqgan import SIZES, VQGAN_CONFIG, VQGAN_WEIGHTS, vqgan_from
from dynamics.storage.files import write_bytes

CHAMELEON_VQGAN = ChameleonVQVAEConfig()
"""The published sizes: 512 px, 1,024 codes a frame out of 8,192, 256 wide."""
_TRAINING_ONLY = "loss."
"""Discriminator and perceptual network, which some files keep."""


def convert_vqgan(ckpt: Path, out: Path, config: ChameleonVQVAEConfig = CHAMELEON_VQGAN) -> int:
    """Write ``vqgan.json`` and ``vqgan.safetensors`` into ``out``; returns the number of weights.

    ``out`` is the checkpoint folder that uses it; it is made when it does not exist.

    Raises:
        UserError: no such file, not a torch checkpoint, one that needs more than tensors, or a
            VQGAN of other channels, levels or codebook.
    """
    weights = {
        name: tensor.float().contiguous()
        for name, tensor in _state_dict(ckpt).items()
        if not name.startswith(_TRAINING_ONLY)
    }
    vqgan_from(ckpt, config, weights)
    write_bytes(out / VQGAN_WEIGHTS, save(weights))
    sizes = {name: getattr(config, name) for name in SIZES}
    write_bytes(out / VQGAN_CONFIG, (json.dumps(sizes, indent=2) + "\n").encode())
    return len(weights)


def _state_dict(ckpt: Path) -> dict[str, Tensor]:
    if not ckpt.is_file():
        raise UserError(f"{ckpt} is a folder" if ckpt.is_dir() else f"{ckpt} does not exist")
    try:
        # Files of the time before zip archives cannot be mapped.
        loaded: Any = torch.load(
            ckpt, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(ckpt)
        )
    except Exception as error:  # of any type: the bytes decide what the unpickler does
        needs = re.search(r"GLOBAL ([\w.]+)", str(error))
        if needs is None:
            raise UserError(f"{ckpt} is no torch checkpoint, or is damaged") from error
        raise UserError(
            f"{ckpt} is refused: it holds more than tensors, and reading it would run "
            f"{needs.group(1)}; save its state_dict alone where it comes from"
        ) from error
    state = loaded.get("state_dict") if isinstance(loaded, dict) else None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"{ckpt} has no state_dict of tensors")
    return state
