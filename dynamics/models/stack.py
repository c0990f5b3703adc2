"""The decoder layers of a Llama-like network as functions over weights laid out for speed.

transformers' own layers stay the reference. These differ in the order of sums only: projections
that read the same input are one product, and a LoRA adapter is added to the weight instead of
computed beside it, W + s B A.

B rows, T positions, N = B * T, D width, H heads of d channels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear, scaled_dot_product_attention
from transformers.models.chameleon.modeling_chameleon import ChameleonDecoderLayer
from transformers.models.gemma.modeling_gemma import GemmaDecoderLayer
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from dynamics.models.packed import packed_product, packing_pays

_LAYERS = ChameleonDecoderLayer, GemmaDecoderLayer, LlamaDecoderLayer


def has_stack(decoder: nn.Module) -> bool:
    """True when `Stack` computes what the decoder's own layers do."""
    linears = [m for m in decoder.layers.modules() if isinstance(m, nn.Linear)]  # type: ignore[union-attr]
    adapted = [m for m in decoder.modules() if isinstance(m, LoraLinear)]
    rotary: Any = decoder.rotary_emb
    return (
        all(isinstance(layer, _LAYERS) for layer in decoder.layers)  # type: ignore[union-attr]
        and rotary.rope_type == "default"
        and all(linear.bias is None for linear in linears)
        and not (decoder.training and decoder.config.attention_dropout)  # type: ignore[union-attr]
        and not any(layer.lora_variant for layer in adapted)
        and not any(is_active(d) for layer in adapted for d in layer.lora_dropout.values())
    )


def is_active(dropout: nn.Module) -> bool:
    """True for a dropout that drops, as it does in training only."""
    return isinstance(dropout, nn.Dropout) and dropout.training and dropout.p > 0


@dataclass(frozen=True, slots=True)
class Past:
    """What rows begin with, each distinct beginning once."""

    layers: list[tuple[Tensor, Tensor]]
    """Keys and values of every layer, [U, P, H, d]."""
    of_row: Tensor
    """int64 [B]: the beginning of every row."""


class Stack:
    """All layers with the last norm.

    Args:
        decoder: a decoder for which `has_stack` holds; its base weights become parts of larger
            tensors, without a copy beside them.
        adapter: the LoRA adapter to apply, if the decoder has it.
        packed: whether weights with their adapters may be copied once into a CPU's own order.
            Without gradients only, and only where neither changes any more.
    """

    def __init__(self, decoder: Any, adapter: str, *, packed: bool = False) -> None:
        self.layers = [Layer(layer, adapter, packed) for layer in decoder.layers]
        self.norm, self._rotary = decoder.norm, decoder.rotary_emb

    def turns(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines [stop - start, 1, d] of the rotation at these positions."""
        frequencies = self._rotary.inv_freq
        places = torch.arange(start, stop, device=frequencies.device)[None]
        cos, sin = self._rotary(frequencies.new_empty(0, dtype=torch.float32), places)
        signed = torch.cat([-sin[0, :, : sin.shape[-1] // 2], sin[0, :, sin.shape[-1] // 2 :]], -1)
        return cos[0][:, None], signed[:, None]

    def __call__(
        self,
        x_BTD: Tensor,
        wanted_S: Tensor,
        kept: list[tuple[Tensor, Tensor]] | None = None,
        mask: Tensor | None = None,
        past: "Past | None" = None,
    ) -> Tensor:
        """Last hidden states [S, D] at the ``wanted_S`` of the N positions.

        Nothing but keys and values is computed for other positions in the last layer. Keys and
        values of every layer, [B, T, H, d], are appended to ``kept`` where it is given. ``mask``
        [B, 1, T, T] says what each position sees; None = all before it. Rows go on from ``past``
        where it is given.
        """
        rows, length, width = x_BTD.shape
        start = 0 if past is None else past.layers[0][0].shape[1]
        if past is not None:
            seen = torch.ones(length, start + length, dtype=torch.bool, device=x_BTD.device)
            mask = seen.tril(start)
        turns = self.turns(start, start + length)
        x_ND = x_BTD.reshape(-1, width)
        for number, layer in enumerate(self.layers):
            query, key, value = layer.heads(x_ND.view(rows, length, width), turns)
            if kept is not None:
                kept.append((key, value))
            if past is not None:
                before = (part[past.of_row] for part in past.layers[number])
                key, value = (torch.cat(pair, 1) for pair in zip(before, (key, value), strict=True))
            mixed = attend(query, key, value, mask).reshape(len(x_ND), -1)
            if layer is self.layers[-1]:
                x_ND, mixed = x_ND.index_select(0, wanted_S), mixed.index_select(0, wanted_S)
            x_ND = layer.rest(x_ND, mixed)
        states: Tensor = self.norm(x_ND)
        return states

    def past(self, embed: Callable[[Tensor], Tensor], ids_BP: Tensor) -> Past:
        """Keys and values of the tokens that rows begin with, each distinct beginning once."""
        distinct, of_row = torch.unique(ids_BP, dim=0, return_inverse=True)
        kept: list[tuple[Tensor, Tensor]] = []
        x_UPD = embed(distinct)
        of_row = of_row.to(x_UPD.device)
        self(x_UPD, of_row[:0], kept)
        return Past(kept, of_row)


class Layer:
    """Weights of one decoder layer."""

    def __init__(self, layer: Any, adapter: str, packed: bool) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._norms = layer.input_layernorm, layer.post_attention_layernorm
        self._dim: int = attention.head_dim
        config = attention.config
        self._num_q: int = config.num_attention_heads
        self._num_kv: int = config.num_key_value_heads
        query_key_value = attention.q_proj, attention.k_proj, attention.v_proj
        self._qkv = Product(query_key_value, adapter, packed)
        self._out = Product([attention.o_proj], adapter, packed)
        self._gate_up = Product([mlp.gate_proj, mlp.up_proj], adapter, packed)
        self._down = Product([mlp.down_proj], adapter, packed)
        self._act = mlp.act_fn
        self._qk_affine: tuple[Tensor, Tensor] | None = None
        if hasattr(attention, "q_norm"):
            norms = attention.q_norm, attention.k_norm
            weight = torch.cat([norm.weight for norm in norms])
            bias = torch.cat([norm.bias for norm in norms])
            self._qk_affine = weight.detach(), bias.detach()

    def heads(self, x_BTD: Tensor, turns: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries and keys, and values, each [B, T, H, d]."""
        found = self._qkv(self._norms[0](x_BTD))
        found = found.view(*x_BTD.shape[:2], -1, self._dim)
        turned, value = torch.split(found, [self._num_q + self._num_kv, self._num_kv], -2)
        if self._qk_affine is not None:
            weight, bias = self._qk_affine
            turned = torch.addcmul(bias, layer_norm(turned, (self._dim,), eps=1e-5), weight)
        cos, sin = (turn.to(turned.dtype) for turn in turns)
        turned = torch.addcmul(turned * cos, turned.roll(self._dim // 2, -1), sin)
        query, key = torch.split(turned, [self._num_q, self._num_kv], -2)
        return query, key, value

    def rest(self, x_ND: Tensor, mixed_ND: Tensor) -> Tensor:
        """The layer's output from its input and the heads' mixed values."""
        x_ND = x_ND + self._out(mixed_ND)
        gate, up = self._gate_up(self._norms[1](x_ND)).chunk(2, -1)
        return x_ND + self._down(self._act(gate) * up)


def attend(
    query_BTHd: Tensor, key_BTHd: Tensor, value_BTHd: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Causal attention, or what ``mask`` lets see, [B, T, H, d]."""
    query, key, value = (x.transpose(1, 2) for x in (query_BTHd, key_BTHd, value_BTHd))
    grouped = query.shape[1] != key.shape[1]
    return scaled_dot_product_attention(
        query, key, value, mask, is_causal=mask is None, enable_gqa=grouped
    ).transpose(1, 2)


class Product:
    """Linear layers that read the same input, and their LoRA adapters, as one product."""

    def __init__(self, layers: Sequence[nn.Module], adapter: str, packed: bool) -> None:
        bases: list[Any] = [getattr(layer, "base_layer", layer) for layer in layers]
        self._weight = _adjacent([base.weight for base in bases])
        self._factors: list[Tensor] = []
        self._places: list[tuple[slice, float]] = []
        stop = 0
        for layer, base in zip(layers, bases, strict=True):
            start, stop = stop, stop + base.out_features
            if isinstance(layer, LoraLinear) and adapter in layer.lora_A:
                down, up = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
                self._factors += [down, up]  # type: ignore[list-item]
                self._places.append((slice(start, stop), layer.scaling[adapter]))
        self._packed = None
        if packed and packing_pays(self._weight):
            merged = _merged(self._weight, self._places, [f.detach() for f in self._factors])
            self._packed = packed_product(merged)

    def __call__(self, x: Tensor) -> Tensor:
        """The layers' outputs, one after the other in the last dimension."""
        if self._packed is not None:
            return self._packed(x)
        if not self._factors:
            return linear(x, self._weight)
        if torch.is_grad_enabled():
            merged: Tensor = _Merged.apply(x, self._weight, self._places, *self._factors)  # type: ignore[no-untyped-call]
            return merged
        found = linear(x, self._weight)
        pairs = zip(self._factors[::2], self._factors[1::2], strict=True)
        for (rows, scale), (down, up) in zip(self._places, pairs, strict=True):
            # peft keeps adapters in float32 also where the base is in bfloat16.
            added = linear(linear(x.to(down.dtype), down), up)
            found[..., rows].add_(added.to(found.dtype), alpha=scale)
        return found


def _adjacent(weights: Sequence[nn.Parameter]) -> Tensor:
    """The weights below each other in one tensor, of which they become parts."""
    if len(weights) == 1:
        return weights[0].detach()
    first, rows = weights[0], sum(len(weight) for weight in weights)
    place, expected = first.untyped_storage().data_ptr(), first.storage_offset()
    for weight in weights:
        if (weight.untyped_storage().data_ptr(), weight.storage_offset()) != (place, expected):
            break
        expected += weight.numel()
    else:
        return first.detach().as_strided((rows, first.shape[1]), (first.shape[1], 1))
    whole = torch.cat([weight.detach() for weight in weights])
    for weight, part in zip(weights, torch.split(whole, [len(w) for w in weights]), strict=True):
        weight.data = part
    return whole


class _Merged(torch.autograd.Function):
    """x (W + s B A)^T. The gradients of A and B are small products: none of W's size is made."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, places: list[tuple[slice, float]], *factors: Tensor
    ) -> Tensor:
        ctx.places = places
        ctx.save_for_backward(x, weight, *factors)
        return linear(x, _merged(weight, places, factors))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *factors = ctx.saved_tensors
        downs, ups = factors[::2], factors[1::2]
        grad_NO, x_ND = grads[0].flatten(0, -2), x.flatten(0, -2)
        inner_NR = linear(x_ND, torch.cat(downs))
        ranks = [len(down) for down in downs]
        inner_grads, up_grads = [], []
        for (rows, scale), up, inner in zip(
            ctx.places, ups, torch.split(inner_NR, ranks, 1), strict=True
        ):
            own = grad_NO[:, rows]
            inner_grads.append(own @ (up * scale))
            up_grads.append((own.T @ inner).mul_(scale))
        down_grads = torch.split(torch.cat(inner_grads, 1).T @ x_ND, ranks)
        factor_grads = [g for pair in zip(down_grads, up_grads, strict=True) for g in pair]
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grads[0] @ _merged(weight, ctx.places, factors)
        return grad_x, None, None, *factor_grads


def _merged(
    weight: Tensor, places: Sequence[tuple[slice, float]], factors: Sequence[Tensor]
) -> Tensor:
    merged = weight.clone()
    for (rows, scale), down, up in zip(places, factors[::2], factors[1::2], strict=True):
        merged[rows].addmm_(up, down, alpha=scale)
    return merged
