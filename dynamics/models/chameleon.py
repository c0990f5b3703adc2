"""Chameleon (7B and tiny alike) as a unified VLM: one frozen base, peft adapters on top.

transformers' `ChameleonForConditionalGeneration.forward` sets every image logit to the lowest
number, before the loss: no image could be trained or generated through it. So the decoder stack
is called directly, and only the rows of the head that a task needs are projected.

B rows, T positions, D width, V vocabulary, K selected vocabulary rows.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoTokenizer, ChameleonConfig, ChameleonForConditionalGeneration
from transformers.cache_utils import Cache

from dynamics.errors import UserError
from dynamics.ledger.files import checkpoint_digest
from dynamics.models.base import ImageTokenizer
from dynamics.models.fsq import FsqTokenizer
from dynamics.models.tokens import Prompts, Tokens

AdapterName = Literal["idm", "fdp"]


class UnifiedVLM:
    """A Chameleon-class language model with its image tokenizer and token layouts."""

    def __init__(self, base: Path, network: Any, device: str) -> None:
        self.base = base
        self.device = torch.device(device)
        self.network: Any = network.to(self.device).eval()
        self.images = load_image_tokenizer(base)
        self.tokens = load_tokens(base, self.images)
        self.digest = checkpoint_digest(base)
        """sha256 over the base's weights, tokenizer and prompts."""
        self.image_ids = self.tokens.image_ids.to(self.device)
        """int64 [num_codes]: vocabulary id of every code, on the device."""

    @classmethod
    def load(cls, base: Path, device: str = "cpu") -> "UnifiedVLM":
        """Load a checkpoint folder in the Hugging Face layout.

        Raises:
            UserError: the folder is missing or holds something else.
        """
        return cls(base, load_network(base), device)

    def load_adapter(self, name: AdapterName, path: Path) -> None:
        """Add a peft adapter from a folder; the last one loaded is active."""
        if not (path / "adapter_config.json").is_file():
            raise UserError(f"{path} holds no peft adapter (adapter_config.json is missing)")
        if isinstance(self.network, PeftModel):
            self.network.load_adapter(str(path), adapter_name=name)
        else:
            self.network = PeftModel.from_pretrained(self.network, str(path), adapter_name=name)
        self.network.to(self.device).eval()
        self.use(name)

    def merge_adapter(self) -> None:
        """Add the active adapter to the base's weights: faster, but no other one can follow."""
        self.network = self.network.merge_and_unload().eval()

    def use(self, name: AdapterName) -> None:
        """Make an adapter the active one; merged and fully fine-tuned models have none."""
        if isinstance(self.network, PeftModel) and self.network.active_adapter != name:
            self.network.set_adapter(name)

    @property
    def _causal_lm(self) -> Any:
        return (
            self.network.get_base_model() if isinstance(self.network, PeftModel) else self.network
        )

    def hidden(self, ids_BT: Tensor, cache: Cache | None = None) -> Tensor:
        """Last hidden states [B, T, D]; extends ``cache`` in place when one is given."""
        output = self._causal_lm.model(
            input_ids=ids_BT.to(self.device), past_key_values=cache, use_cache=cache is not None
        )
        states: Tensor = output.last_hidden_state
        return states

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """Logits over the whole vocabulary, [B, T, V]."""
        logits: Tensor = self._causal_lm.lm_head(hidden_BTD)
        return logits

    def image_logits(self, hidden_BTD: Tensor) -> Tensor:
        """Logits over the image codes only, [B, T, num_codes]; no other row is computed."""
        weight = active_weight(self._causal_lm.lm_head)
        return hidden_BTD @ weight[self.image_ids].T


def active_weight(layer: nn.Module) -> Tensor:
    """The weight in force of a layer that peft may have wrapped (`modules_to_save`)."""
    copies = getattr(layer, "modules_to_save", None)
    if copies is None:
        weight: Tensor = layer.weight  # type: ignore[assignment]
        return weight
    active = layer.active_adapters[0]  # type: ignore[index]
    saved: Tensor = copies[active].weight
    return saved


def load_network(base: Path) -> ChameleonForConditionalGeneration:
    """The language model alone, float32, safetensors only."""
    if not (base / "config.json").is_file():
        raise UserError(f"{base} is not a checkpoint folder (config.json is missing)")
    config = ChameleonConfig.from_pretrained(base)
    if config.model_type != "chameleon":
        raise UserError(f"{base} holds a {config.model_type} model, expected chameleon")
    network: ChameleonForConditionalGeneration = ChameleonForConditionalGeneration.from_pretrained(
        base, use_safetensors=True, dtype=torch.float32
    )
    return network


def load_image_tokenizer(base: Path) -> ImageTokenizer:
    """The checkpoint's image tokenizer, without the language model."""
    return FsqTokenizer.load(base)


def load_tokens(base: Path, images: ImageTokenizer) -> Tokens:
    """The checkpoint's token layouts."""
    config: Any = ChameleonConfig.from_pretrained(base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    return Tokens(tokenizer, config.vocabulary_map, Prompts.load(base), images.num_tokens)
