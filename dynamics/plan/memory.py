"""Memory on a GPU (or of a CPU worker), by stage. Every formula stands where it is used.

An estimate; docs/LOG.md has it beside what a GPU measured.
"""

import math
from dataclasses import dataclass
from typing import Literal

from dynamics.core.config import LoopConfig
from dynamics.inference.budget import (
    CODES_BATCH,
    SCORE_BATCH,
    TEXT_BATCH,
    USED,
    drawn_bytes,
    scored_bytes,
)
from dynamics.labelling.confidence import SCORES
from dynamics.models.packed import LEAST, MOST
from dynamics.plan.flops import TaskPlan, sampled_sentences, scored_positions
from dynamics.plan.sizes import Sizes

Strategy = Literal["ddp", "fsdp2", "deepspeed_zero2", "deepspeed_zero3"]
"""Strategies of sharing memory, `train.strategy`."""
Stage = Literal["ingest", "label", "train", "evaluate", "serve"]
"""Stages of a run that may use GPUs; the guards' frames are decoded by the actors of ingest."""

OVERHEAD_BYTES = 2 * 2**30
"""Memory of CUDA, its libraries and the allocator."""
_FRAME_BYTES = 0.85e9 / 512**2
"""Bytes a pixel inside a VQGAN's encoder: 8 frames of 512 px took 6.8 GB on an H100."""
_FRAMES = 8
"""Frames of 512 px that an image tokenizer takes at a time on a GPU."""
_DROPOUT_BYTES = 1.6
"""Bytes kept for each input of an adapted layer by LoRA's dropout: its mask and a copy, less what
is then not kept elsewhere. A row of Chameleon-7B took 18.6 GB on an H100, and 14.8 without it."""
_MIN_SERVED_ROWS = 8
"""Rows of the smallest batch that a served generator draws."""
_F32 = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes on one GPU while it trains."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    overhead: int

    @property
    def total(self) -> int:
        """Sum of the parts."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.overhead


def training_memory(
    cfg: LoopConfig, sizes: Sizes, plan: TaskPlan, strategy: Strategy, workers: int
) -> Memory:
    """Memory of one GPU while it trains.

    F frozen parameters of p bytes (p = 2 with bfloat16, else 4), T trained ones, W workers:

    - ddp: weights p F + 4 T, gradients 4 T, AdamW 8 T;
    - deepspeed_zero2: gradients and AdamW divided by W;
    - deepspeed_zero3: weights divided by W, too, beside two whole layers (the one that runs and
      the next one);
    - fsdp2: the same, and what lies outside the layers (embeddings, head, image tokenizer) whole.

    Activations of one micro-batch, b rows of t tokens, d wide, f in the feed-forward layer, N
    layers: b t N (p (10 d + 4 f) + 12 d). Saved in the working precision: the inputs of the
    attention, of its output and of the feed-forward part, queries, keys and values (10 d), and
    four times the hidden part of the feed-forward layer (gate, its activation, up, their product);
    in float32 the inputs of the norms (3 d). Attention saves no matrix (fused kernels). LoRA's
    dropout keeps more of the inputs of its seven layers (6 d + f). With gradient checkpointing:
    b t N p d, and one layer's. The logits of the scored positions three times: in p bytes, in
    float32, and their gradient.
    """
    p = 2 if cfg.train.precision == "bfloat16" else _F32
    trained = sizes.trainable
    base = sizes.total - (trained if cfg.train.method == "full" else 0)
    weights = p * base + _F32 * trained
    gradients, optimizer = _F32 * trained, 2 * _F32 * trained
    if strategy != "ddp":
        gradients, optimizer = math.ceil(gradients / workers), math.ceil(optimizer / workers)
    if strategy in ("fsdp2", "deepspeed_zero3"):
        outside = sizes.total - sizes.layers
        whole = p * outside + _F32 * sizes.saved_modules if strategy == "fsdp2" else 0
        live = whole + 2 * p * sizes.largest_layer if workers > 1 else 0
        weights = math.ceil(weights / workers) + live
    return Memory(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        activations=_activations(cfg, sizes, plan, p),
        overhead=_overhead(cfg),
    )


def _activations(cfg: LoopConfig, sizes: Sizes, plan: TaskPlan, p: int) -> int:
    d, f = sizes.width, sizes.feed_forward
    tokens = plan.micro_batch_rows * plan.tokens_per_row
    layer = p * (10 * d + 4 * f) + 3 * _F32 * d
    if cfg.train.method == "lora" and cfg.train.lora.dropout:
        layer += round(_DROPOUT_BYTES * (6 * d + f))
    if cfg.train.gradient_checkpointing:
        saved = tokens * (sizes.num_layers * p * d + layer)
    else:
        saved = tokens * sizes.num_layers * layer
    positions, columns = scored_positions(sizes, plan.task)
    return saved + plan.micro_batch_rows * positions * columns * (p + 2 * _F32)


def inference_memory(cfg: LoopConfig, sizes: Sizes, stage: Stage, room: int | None = None) -> int:
    """Bytes on one GPU, or of one CPU worker, in a stage that trains nothing.

    Ingest: an image tokenizer in float32 and its batch of frames. The others: the base in the
    precision of its files, a copy for each adapter where they are merged, the adapters in float32,
    on a CPU the packed weights of each, and the largest of

    - a prefill: the prompts' keys and values, and what a layer needs for all their tokens at once;
    - decoding: keys and values of every row, and the scores of its next token;
    - scoring rows that are given: a layer's needs for all their tokens, or the logits three times.

    With ``room``, the bytes of a GPU, its batches are those that the engines' budgets cut.
    """
    if stage == "ingest":
        if not sizes.tokenizer_flops:
            return _overhead(cfg)
        return round(_FRAMES * _FRAME_BYTES * 512**2) + _overhead(cfg)
    held = _held(cfg, sizes, stage)
    found = batches(cfg, sizes, stage, room)
    return held + max(rows * row_bytes for rows, row_bytes in found.values())


def _held(cfg: LoopConfig, sizes: Sizes, stage: Stage) -> int:
    """Bytes of the models of a stage, and what a GPU needs beside them."""
    both = stage != "label" or SCORES[cfg.filter.score].needs == "fdp_loglik"
    copies = 2 if both and cfg.model.merge_adapters else 1
    adapters = 0 if cfg.model.merge_adapters else _F32 * sizes.trainable * (1 + both)
    packed = (1 + both) * _packed(cfg, sizes)
    return copies * sizes.weight_bytes * sizes.total + adapters + packed + _overhead(cfg)


def _packed(cfg: LoopConfig, sizes: Sizes) -> int:
    """Bytes of the layers' weights in a CPU's own order (`dynamics.models.packed`), an adapter."""
    floats = cfg.model.device == "cpu" and sizes.weight_bytes == _F32
    pays = sizes.width**2 >= LEAST and sizes.total <= MOST
    return _F32 * sizes.layers if floats and pays else 0


def batches(
    cfg: LoopConfig, sizes: Sizes, stage: Stage, room: int | None
) -> dict[str, tuple[int, int]]:
    """Rows and bytes a row of a stage's largest batch of each kind, cut to the ``room`` of a GPU.

    A row is a pair whose sentences, or a source whose frames are drawn, or what is scored.
    """
    free = None if room is None else USED * (room - _held(cfg, sizes, stage))

    def cut(rows: int, most: int, row_bytes: int) -> tuple[int, int]:
        fit = rows if free is None else int(free / row_bytes)
        return max(1, min(rows, most, fit)), row_bytes

    def sentences(rows: int, samples: int) -> tuple[int, int]:
        prompt, steps = sizes.idm_tokens - sizes.action_tokens, sizes.action_tokens
        row = drawn_bytes(sizes, prompt, samples, steps, sizes.vocabulary)
        return cut(rows, TEXT_BATCH // samples, row)

    def frames(rows: int, samples: int) -> tuple[int, int]:
        prompt = sizes.fdp_tokens - sizes.image_tokens
        row = drawn_bytes(sizes, prompt, samples, sizes.image_tokens, sizes.num_codes)
        return cut(rows, CODES_BATCH // samples, row)

    def scores(rows: int) -> tuple[int, int]:
        row = scored_bytes(sizes, sizes.fdp_tokens, sizes.image_tokens, sizes.num_codes)
        return cut(rows, SCORE_BATCH, row)

    if stage == "label":
        rows, drawn = cfg.label.batch_size, sampled_sentences(cfg)
        found = {"sentences": sentences(rows, drawn)}
        if SCORES[cfg.filter.score].needs == "fdp_loglik":
            found["scores"] = scores(rows * drawn)
        return found
    if stage == "evaluate":
        rows, samples = cfg.evaluate.batch_size, max(cfg.evaluate.best_of)
        return {
            "sentences": sentences(rows, 1),
            "frames": frames(rows, samples),
            "scores": scores(rows * (samples + 1)),
        }
    samples = cfg.serve.num_samples
    sources = max(cfg.serve.batch_rows // samples, math.ceil(_MIN_SERVED_ROWS / samples))
    return {"frames": frames(sources, samples), "scores": scores(sources * (samples + 1))}


def _overhead(cfg: LoopConfig) -> int:
    return OVERHEAD_BYTES if cfg.model.device == "cuda" else 0
