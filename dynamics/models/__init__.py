"""Model families. To add one: a module with the three loaders, and one line in FAMILIES."""

import ctypes
import platform
import sys
from importlib import import_module
from typing import TYPE_CHECKING, cast

from dynamics.core.errors import UserError
from dynamics.core.places import Place
from dynamics.models.family import Family
from dynamics.storage.files import local_copy

if TYPE_CHECKING:
    from dynamics.models.image_tokenizer import ImageTokenizer, Precision
    from dynamics.models.tokens import Tokens
    from dynamics.models.vlm import UnifiedVLM

FAMILIES: dict[str, str] = {
    "chameleon": "dynamics.models.chameleon",
    "liquid": "dynamics.models.liquid",
    "janus": "dynamics.models.janus",
}
"""Family name to module, as import strings: commands and configuration load without torch."""
VQGAN_ADDRESS = "https://huggingface.co/spaces/Junfeng5/Liquid_demo, chameleon/vqgan.ckpt"
"""Place of the VQGAN with which Chameleon, Anole and Liquid draw."""


def _family(name: str) -> Family:
    if name not in FAMILIES:
        raise UserError(f"unknown model family {name!r}; known: {', '.join(FAMILIES)}")
    return cast("Family", import_module(FAMILIES[name]))


def load_model(family: str, base: Place, device: str = "cpu") -> "UnifiedVLM":
    """The unified VLM of a checkpoint folder; `UserError` when folder or device is wrong."""
    _prepare(device)
    return _family(family).load(local_copy(base), device)


def load_image_tokenizer(
    family: str, base: Place, device: str = "cpu", precision: "Precision" = "float32"
) -> "ImageTokenizer":
    """The image tokenizer of a checkpoint folder, without its language model."""
    _prepare(device)
    images = _family(family).load_image_tokenizer(local_copy(base), device)
    images.precision = precision
    return images


def load_tokens(family: str, base: Place, images: "ImageTokenizer") -> "Tokens":
    """The token layouts of a checkpoint folder, without its language model."""
    return _family(family).load_tokens(local_copy(base), images)


def check_device(device: str) -> None:
    """Refuse a device that this machine does not have.

    Raises:
        UserError: it is "cuda", and torch sees none.
    """
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise UserError(f"model.device=cuda, and torch sees no GPU on {platform.node()}")


def _prepare(device: str) -> None:
    check_device(device)
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Let this process reuse the memory of freed tensors, up to 256 MB.

    glibc may give it back to the system at once, which clears it again for the next tensor: a step
    of the tiny network met up to 14,000 page faults, a seventh of its time.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, 2**25)  # the largest value that glibc takes
        libc.mallopt(_M_TRIM_THRESHOLD, 2**28)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Numbers of malloc.h."""
