"""A unified VLM: one frozen base, peft adapters on top, an image tokenizer and token layouts.

No transformers class is called through its own ``forward``: Chameleon's sets every image logit to
the lowest number, before the loss, and every head is projected only where a token is needed.

B rows, T positions, D width, V vocabulary.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.cache_utils import Cache

from dynamics.core.errors import UserError
from dynamics.models.checkpoint import LOAD_ERRORS, check_adapter, first_line
from dynamics.models.image_tokenizer import ImageTokenizer
from dynamics.models.packed import packed_product, packing_pays
from dynamics.models.tokens import Tokens
from dynamics.storage.files import checkpoint_digest

AdapterName = Literal["idm", "fdp"]
Head = Callable[[Tensor], Tensor]
"""Hidden states to logits over a part of the vocabulary."""


class UnifiedVLM:
    """A causal language model over text and image codes in one vocabulary.

    A family with ``network.model`` (the decoder stack) and ``network.lm_head`` over the whole
    vocabulary needs no more than this class; others override `hidden`, `logits`, `image_logits`.

    Raises:
        UserError: vocabulary and image tokenizer have different numbers of codes.
    """

    vocabulary_layers: ClassVar[tuple[str, ...]] = ("embed_tokens", "lm_head")
    """Embeddings and heads, by the end of their names: what ``lora.train_embeddings`` trains."""
    heads_apart: ClassVar[bool] = False
    """True when words and codes have heads of their own, of which a task may leave one unused."""

    def __init__(
        self, base: Path, network: Any, images: ImageTokenizer, tokens: Tokens, device: str
    ) -> None:
        if len(tokens.image_ids) != images.num_codes:
            raise UserError(
                f"the vocabulary of {base} has {len(tokens.image_ids):,} image tokens, "
                f"its image tokenizer {images.num_codes:,} codes: they do not belong together"
            )
        self.base = base
        self.device = torch.device(device)
        self.network: Any = network.to(self.device).eval()
        self.images = images
        self.tokens = tokens
        self.digest = checkpoint_digest(base)
        """sha256 over the base's weights, tokenizer and prompts."""
        self.image_ids = self.tokens.image_ids.to(self.device)
        """int64 [num_codes]: vocabulary id of every code, on the device."""
        is_text = torch.ones(self._vocabulary_size(), dtype=torch.bool, device=self.device)
        is_text[self.image_ids] = False
        self.text_ids = is_text.nonzero()[:, 0]
        """int64: vocabulary ids that are no image codes, ascending, on the device."""

    def _vocabulary_size(self) -> int:
        return int(self.causal_lm.lm_head.weight.shape[0])

    def load_adapter(self, name: AdapterName, path: Path) -> None:
        """Add a peft adapter from a folder; the last one loaded is active.

        Raises:
            UserError: it is damaged, or another base's.
        """
        check_adapter(path)
        try:
            if isinstance(self.network, PeftModel):
                self.network.load_adapter(str(path), adapter_name=name)
            else:
                self.network = PeftModel.from_pretrained(self.network, str(path), adapter_name=name)
        except LOAD_ERRORS as error:
            raise UserError(
                f"{path} cannot be loaded onto {self.base}: {first_line(error)}"
            ) from error
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
    def causal_lm(self) -> Any:
        """The network without the peft wrapper around it."""
        return (
            self.network.get_base_model() if isinstance(self.network, PeftModel) else self.network
        )

    @property
    def decoder(self) -> Any:
        """The decoder stack: layers, last norm and rotary embedding, without the vocabulary."""
        return self.causal_lm.model

    def embed(self, ids_BT: Tensor) -> Tensor:
        """Input vectors of token ids, [B, T, D]."""
        vectors: Tensor = self.decoder.embed_tokens(ids_BT.to(self.device))
        return vectors

    def hidden(
        self, ids_BT: Tensor, cache: Cache | None = None, lead_B: Tensor | None = None
    ) -> Tensor:
        """Last hidden states [B, T, D]; extends ``cache`` in place when one is given.

        ``lead_B`` tells how many fillers each row begins with (`Tokens.lead`).
        """
        mask = None
        if lead_B is not None:
            seen = cache.get_seq_length() if cache is not None else 0
            mask = visible(seen, seen + ids_BT.shape[1], lead_B.to(self.device))
        output = self.decoder(
            inputs_embeds=self.embed(ids_BT),
            attention_mask=mask,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        states: Tensor = output.last_hidden_state
        return states

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """Logits over the whole vocabulary, [B, T, V]."""
        logits: Tensor = self.causal_lm.lm_head(hidden_BTD)
        return logits

    def image_logits(self, hidden_BTD: Tensor) -> Tensor:
        """Logits over the image codes only, [B, T, num_codes]; no other row is computed."""
        return self.image_head()(hidden_BTD)

    def image_head(self, *, packed: bool = False) -> Head:
        """`image_logits` with its rows laid out once, for the weights now in force.

        See `dynamics.models.stack.Stack` about ``packed``.
        """
        return self._head(self.image_ids, packed)

    def text_head(self, *, packed: bool = False) -> Head:
        """Logits over the vocabulary without image codes, in the order of ``text_ids``."""
        return self._head(self.text_ids, packed)

    def _head(self, ids: Tensor, packed: bool) -> Head:
        weight, first, stop = active_weight(self.causal_lm.lm_head), int(ids[0]), int(ids[-1]) + 1
        in_order = torch.equal(ids, torch.arange(first, stop, device=ids.device))
        rows = weight[first:stop] if in_order else weight[ids]
        if packed and packing_pays(rows):
            return packed_product(rows)
        return lambda hidden: linear(hidden, rows)


def visible(start: int, stop: int, lead_B: Tensor) -> Tensor:
    """What positions start to stop may see of all before them, bool [B, 1, stop - start, stop].

    Fillers see fillers, so that no row of attention is empty.
    """
    keys, queries = torch.arange(stop, device=lead_B.device), slice(start, stop)
    is_filler = keys < lead_B[:, None]
    causal = keys <= keys[queries, None]
    return (causal & (~is_filler[:, None] | is_filler[:, queries, None]))[:, None]


def active_weight(layer: nn.Module) -> Tensor:
    """The weight in force of a layer that peft may have wrapped (`modules_to_save`)."""
    copies = getattr(layer, "modules_to_save", None)
    if copies is None:
        weight: Tensor = layer.weight  # type: ignore[assignment]
        return weight
    active = layer.active_adapters[0]  # type: ignore[index]
    saved: Tensor = copies[active].weight
    return saved
