"""Sizes of the base: counted on the meta device, where a network has shapes and no memory."""

import json
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from peft import get_peft_model
from torch import nn
from transformers import AutoConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from dynamics.core.config import PACKAGE_ROOT, LoopConfig
from dynamics.core.errors import UserError
from dynamics.core.text_files import read_json_object
from dynamics.inference.budget import Shape
from dynamics.models import load_image_tokenizer, load_tokens
from dynamics.models.image_tokenizers.fsq import FsqTokenizer
from dynamics.storage.files import local_copy
from dynamics.training.trainable import adapter_config, train_all

_TOKENIZER_FLOPS = 554_000_000_000
"""FLOPs of encoding a frame of 512 px by the published VQGAN."""
PUBLISHED = PACKAGE_ROOT / "assets" / "published"
"""Sizes of published checkpoints, ``<folder of the base>.json``; a word counts as a token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes(Shape):
    """Sizes of the base and of its adapters, as counts of parameters or tokens, not bytes."""

    source: str
    """Origin of the shapes."""
    total: int
    """All parameters of the base; tied ones once."""
    image_tokenizer: int
    """Parameters of the VQ model inside the network, which is never trained."""
    layers: int
    """Parameters of all decoder layers."""
    largest_layer: int
    """Parameters of one decoder layer, with its adapter."""
    trainable: int
    """Parameters trained by one task: an adapter, or (``train.method`` full) the language model."""
    adapter_linear: int
    """Trained parameters in LoRA matrices, which cost FLOPs beside the base's own."""
    saved_modules: int
    """Trained copies of embeddings and head (``lora.train_embeddings``)."""
    attention_width: int
    """Number of heads times their width."""
    vocabulary: int
    num_codes: int
    image_tokens: int
    """L: codes a frame."""
    instruction_tokens: int
    """Tokens of the prompt, start token included."""
    action_tokens: int
    """A: the longest action sentence."""
    tokenizer_flops: int
    """FLOPs of encoding one frame; 0 where they do not matter."""

    @property
    def fdp_tokens(self) -> int:
        """Tokens of a training row, [instruction | A | boi L eoi | boi L], shifted by one."""
        return self.instruction_tokens + self.action_tokens + 2 * self.image_tokens + 2

    @property
    def idm_tokens(self) -> int:
        """Tokens of a training row, [instruction | 2 x (boi L eoi) | A + 1], shifted by one."""
        return self.instruction_tokens + 2 * (self.image_tokens + 2) + self.action_tokens


def base_sizes(cfg: LoopConfig) -> Sizes:
    """Sizes of the run's base, and of what the run trains on it.

    Raises:
        UserError: the base is not on this machine, and its published sizes are not known either.
    """
    base = cfg.base_path()
    if (base / "config.json").is_file():
        found = _of_checkpoint(cfg)
    else:
        path = PUBLISHED / f"{base.name}.json"
        if not path.is_file():
            known = ", ".join(sorted(one.stem for one in PUBLISHED.glob("*.json")))
            raise UserError(
                f"no checkpoint in {base}, and no published sizes under that name ({known}); set "
                "model.base"
            )
        found = json.loads(path.read_text())
        found["source"] = f"published sizes, {found['source']}"
    network = _network(found.pop("config"))
    shape = network.config
    counted: dict[str, Any] = dict(_counted(network, cfg))
    heads = shape.num_attention_heads
    head_width = getattr(shape, "head_dim", None) or shape.hidden_size // heads
    return Sizes(
        **found,
        **counted,
        num_layers=shape.num_hidden_layers,
        width=shape.hidden_size,
        feed_forward=shape.intermediate_size,
        attention_width=heads * head_width,
        cache_width=shape.num_key_value_heads * head_width,
        weight_bytes=4 if shape.dtype == torch.float32 else 2,  # published ones: half precision
        vocabulary=shape.vocab_size,
    )


def _of_checkpoint(cfg: LoopConfig) -> dict[str, Any]:
    base = local_copy(cfg.base_path())
    images = load_image_tokenizer(cfg.model.family, base)
    tokens = load_tokens(cfg.model.family, base, images)
    return {
        "source": f"{cfg.model.base}/config.json",
        "image_tokens": images.num_tokens,
        "num_codes": images.num_codes,
        "instruction_tokens": tokens.instruction_tokens,
        "action_tokens": tokens.prompts.action_tokens,
        "tokenizer_flops": 0
        if isinstance(images, FsqTokenizer)
        else round(_TOKENIZER_FLOPS * (images.frame_px / 512) ** 2),
        "config": read_json_object(base / "config.json"),
    }


def _network(config: dict[str, Any]) -> Any:
    """The language model on the meta device."""
    parsed = AutoConfig.for_model(**config)
    (name,) = config["architectures"]
    with torch.device("meta"):
        return getattr(transformers, name)(parsed)


def _counted(network: Any, cfg: LoopConfig) -> dict[str, int]:
    """Parameters of the base, and of the parts that the run trains."""
    total = _count(network)
    image_tokenizer = _count(network, lambda name, _: "vqmodel." in name)
    layers = sum(_count(layer) for layer in _layers(network))
    if cfg.train.method == "full":
        train_all(network)
    else:
        with torch.device("meta"):
            network = get_peft_model(network, adapter_config(cfg.train.lora))
    return {
        "total": total,
        "image_tokenizer": image_tokenizer,
        "layers": layers,
        "largest_layer": max(_count(layer) for layer in _layers(network)),
        "trainable": _count(network, lambda _, one: one.requires_grad),
        "adapter_linear": _count(network, lambda name, _: ".lora_" in name),
        "saved_modules": _count(network, lambda name, _: ".modules_to_save." in name),
    }


def _layers(network: nn.Module) -> list[nn.Module]:
    return [one for one in network.modules() if isinstance(one, GradientCheckpointingLayer)]


def _count(module: nn.Module, which: Any = lambda name, parameter: True) -> int:
    return sum(one.numel() for name, one in module.named_parameters() if which(name, one))
