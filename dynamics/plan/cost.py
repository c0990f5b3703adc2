"""Memory, hours and disk of a run, from `Sizes`. Every formula stands where it is used.

An estimate, not a measurement: kernels, fragmentation and other people's jobs come on top.
"""

import math
from dataclasses import dataclass
from typing import Literal

from dynamics.core.config import LoopConfig
from dynamics.core.domain import Split, load_simulator
from dynamics.core.places import Place, StorePath
from dynamics.labelling.confidence import SCORES
from dynamics.plan.sizes import Sizes
from dynamics.training.loss import Task

Strategy = Literal["ddp", "fsdp2", "deepspeed_zero2", "deepspeed_zero3"]
"""Strategies of sharing memory. ZeRO-3 is for comparison: `train.strategy` lacks it."""

OVERHEAD_BYTES = 2 * 2**30
"""Memory of CUDA, its libraries and the allocator."""
BYTES_PER_FILMED_PIXEL = 0.2
"""Bytes of filmed clips per pixel of every frame; measured on the default run (443 kB for 10
clips of 14 frames of 128 x 128 px: 0.19)."""
_LEDGER_ROW_BYTES = 400
"""Bytes of a label, its decision and its attempt, compressed."""
_PAIR_ROW_BYTES = 150
"""Bytes of a pair without its codes, compressed: its digests hardly shrink."""
_DECODER_FLOPS = 1.6
"""FLOPs of the VQGAN's decoder over its encoder's: a residual block more on every level. A CPU took
21 s for a frame that it encodes in 13 s."""
_CONVOLUTIONS_ON_GPU = 0.25
"""Speed of the VQGAN's convolutions on a GPU, over that of large matrix products: an H200 encoded
120 frames of 512 px a second (2026-11-26), 66 TFLOP/s, where the others reach about 260."""
_REPORT_BYTES = 2 * 2**20
"""Bytes of a round's pictures, JSON and logs."""
_F32 = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Speed of the machine that the hours are computed for."""

    tflops: float
    """Speed of one GPU (or core) in large matrix products, 10^12 operations a second."""
    utilisation: float
    """Share of that speed that training and labelling reach."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskPlan:
    """A task's training in numbers."""

    tokens_per_row: int
    rows_per_step: int
    micro_batch_rows: int
    """Rows of one worker in memory at a time."""
    steps: int
    """Steps over all rounds, round 0 included."""
    flops_per_token: float

    @property
    def tokens_per_step(self) -> int:
        """Rows of all workers of the task."""
        return self.tokens_per_row * self.rows_per_step


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes on one GPU."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    overhead: int

    @property
    def total(self) -> int:
        """Sum of the parts."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.overhead


@dataclass(frozen=True, slots=True, kw_only=True)
class Hours:
    """Wall hours if nothing else waits. IDM and FDP train side by side.

    Filming, reading videos, evaluation and serving are not counted. Memory traffic bounds the
    drawing of frames, not FLOPs. Frames are encoded, and decoded for the guards, by the actors of a
    joined cluster; a run that joins none has one process for it.
    """

    encode: float
    """Every frame once, for its codes and features."""
    guard: float
    """Every frame of pool and held-out pairs decoded once, for the leakage guard of round 0."""
    label: float
    train: float

    @property
    def total(self) -> float:
        """Sum of the stages, which the loop runs in sequence."""
        return self.encode + self.guard + self.label + self.train


def task_plan(cfg: LoopConfig, sizes: Sizes, task: Task) -> TaskPlan:
    """Steps, tokens and FLOPs of a task's fits."""
    train = cfg.train.of(task)
    per_worker = math.ceil(train.batch_size / train.num_workers)
    tokens = sizes.fdp_tokens if task == "fdp" else sizes.idm_tokens
    return TaskPlan(
        tokens_per_row=tokens,
        rows_per_step=train.batch_size,
        micro_batch_rows=min(per_worker, train.micro_batch_rows or per_worker),
        steps=train.first_steps + cfg.rounds * train.round_steps,
        flops_per_token=training_flops(cfg, sizes, task) / tokens,
    )


def forward_flops(sizes: Sizes, tokens: int) -> float:
    """FLOPs of one row through the decoder layers.

    2 per weight and token for the matrix products; for attention 4 per layer, token, attention
    width and position looked at, which are half of the row's on average.
    """
    attention = 4 * sizes.num_layers * sizes.attention_width * tokens / 2
    return tokens * (2 * sizes.layers + attention)


def training_flops(cfg: LoopConfig, sizes: Sizes, task: Task) -> float:
    """FLOPs of one training row, forward and backward.

    Frozen weights cost 2 forward and 2 for the gradient of their input; trained ones 2 more for
    their own gradient. Attention costs three times its forward. Gradient checkpointing adds one
    forward of the layers. The head is projected on the scored positions only, the FDP's on the
    image codes only.
    """
    tokens = sizes.fdp_tokens if task == "fdp" else sizes.idm_tokens
    forward = forward_flops(sizes, tokens)
    linear = 2.0 * tokens * sizes.layers
    trained = linear if cfg.train.method == "full" else 2.0 * tokens * sizes.adapter_linear
    adapter = 0.0 if cfg.train.method == "full" else 2 * trained
    scored, columns = _scored(sizes, task)
    head = 2.0 * scored * sizes.width * columns
    head *= 3 if cfg.train.method == "full" or sizes.saved_modules else 2
    backward = linear + 2 * (forward - linear) + trained
    again = forward if cfg.train.gradient_checkpointing else 0.0
    return forward + backward + adapter + head + again


def memory(cfg: LoopConfig, sizes: Sizes, plan: TaskPlan, strategy: Strategy) -> Memory:
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
    in float32 the inputs of the norms (3 d). Attention saves no matrix (fused kernels). With
    gradient checkpointing: b t N p d, and one layer's. The logits of the scored positions three
    times: in p bytes, in float32, and their gradient.

    Loading, before any row, needs the base once in float32 on every worker.
    """
    p = 2 if cfg.train.precision == "bfloat16" else _F32
    trained, workers = sizes.trainable, cfg.train.num_workers
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
        overhead=OVERHEAD_BYTES if cfg.model.device == "cuda" else 0,
    )


def _activations(cfg: LoopConfig, sizes: Sizes, plan: TaskPlan, p: int) -> int:
    d, f = sizes.width, sizes.feed_forward
    tokens = plan.micro_batch_rows * plan.tokens_per_row
    layer = p * (10 * d + 4 * f) + 3 * _F32 * d
    if cfg.train.gradient_checkpointing:
        saved = tokens * (sizes.num_layers * p * d + layer)
    else:
        saved = tokens * sizes.num_layers * layer
    task: Task = "fdp" if plan.tokens_per_row == sizes.fdp_tokens else "idm"
    scored, columns = _scored(sizes, task)
    return saved + plan.micro_batch_rows * scored * columns * (p + 2 * _F32)


def _scored(sizes: Sizes, task: Task) -> tuple[int, int]:
    """Positions of a row with a loss, and the vocabulary rows that they are projected on."""
    if task == "fdp":
        return sizes.image_tokens, sizes.num_codes
    return sizes.action_tokens + 1, sizes.vocabulary


def label_flops(cfg: LoopConfig, sizes: Sizes) -> float:
    """FLOPs of labelling one pair: the prompt, then every sentence that is written or scored.

    A score that needs the FDP costs one of its rows per candidate sentence.
    """
    prompt = sizes.instruction_tokens + 2 * (sizes.image_tokens + 2)
    sentence = min(cfg.label.max_action_tokens, sizes.action_tokens + 1)
    flops = forward_flops(sizes, prompt) + cfg.label.candidates * forward_flops(sizes, sentence)
    needs = SCORES[cfg.filter.score].needs
    if needs == "samples":
        flops += cfg.label.agreement_samples * forward_flops(sizes, sentence)
    if needs == "fdp_loglik":
        flops += cfg.label.candidates * forward_flops(sizes, sizes.fdp_tokens)
    return flops


def hours(cfg: LoopConfig, sizes: Sizes, tasks: dict[Task, TaskPlan], machine: Machine) -> Hours:
    """Wall hours: FLOPs over the speed of the GPUs (or cores) that share them."""
    reached = machine.tflops * 1e12 * machine.utilisation
    drawn = reached * (_CONVOLUTIONS_ON_GPU if cfg.model.device == "cuda" else 1)
    pairs = cfg.pool.most_pairs
    labelled, heldout = 2 * cfg.labelled.num_pairs, 2 * cfg.labelled.num_heldout
    encoded = (pool_frames(cfg) + labelled + heldout) * sizes.tokenizer_flops
    decoded = (pool_frames(cfg) + heldout) * sizes.tokenizer_flops * _DECODER_FLOPS
    fits = [
        plan.steps * plan.tokens_per_step * plan.flops_per_token / cfg.train.num_workers
        for plan in tasks.values()
    ]
    return Hours(
        encode=encoded / cfg.ingest.num_actors / drawn / 3600,
        guard=decoded / cfg.ingest.num_actors / drawn / 3600,
        label=cfg.rounds * pairs * label_flops(cfg, sizes) / cfg.label.num_actors / reached / 3600,
        train=max(fits) / reached / 3600,
    )


def pool_frames(cfg: LoopConfig) -> int:
    """Frames of the pool's pairs: k key frames of a clip make k - 1 pairs."""
    k = cfg.pool.keyframes.top_k
    return math.ceil(cfg.pool.most_pairs * k / (k - 1))


def disk_bytes(cfg: LoopConfig, sizes: Sizes) -> dict[str, int]:
    """Size of a finished run folder by part, in bytes.

    codes: 2 L bytes a frame and 2 L a pair (recognition weights), of the labelled set, the held-out
    pairs and the pool; training sets name them. rows: what else is known of a pair, in each of
    these tables and in every round's training set (labelled set and pool).
    adapters: two a round, 4 bytes a trained parameter; once, three times that for the state that a
    fit resumes from.
    """
    labelled, heldout, pool = cfg.labelled.num_pairs, cfg.labelled.num_heldout, cfg.pool.most_pairs
    rounds = cfg.rounds
    frames = 2 * (labelled + heldout) + pool_frames(cfg)
    rows = labelled + heldout + pool + labelled + rounds * (labelled + pool)
    stored = sizes.trainable
    if cfg.train.method == "full":
        stored += sizes.image_tokenizer
    return {
        "codes": 2 * sizes.image_tokens * (frames + labelled + heldout + pool),
        "rows": rows * _PAIR_ROW_BYTES,
        "clips": _clip_bytes(cfg),
        "labels": rounds * pool * _LEDGER_ROW_BYTES,
        "adapters": 2 * _F32 * ((rounds + 1) * stored + 3 * sizes.trainable),
        "reports": (rounds + 1) * (_REPORT_BYTES + heldout * sizes.image_tokens * 2 * 2),
    }


def _clip_bytes(cfg: LoopConfig) -> int:
    """Bytes of the videos on disk, and of those that will be filmed."""
    wanted: dict[Split, int] = {}
    if cfg.labelled.dataset is None:
        wanted = {"labelled": cfg.labelled.num_pairs, "heldout": cfg.labelled.num_heldout}
    if not cfg.pool.parts:
        wanted["pool"] = cfg.pool.num_pairs
    on_disk = 0
    for part in cfg.pool.parts:
        if part.path.is_dir():
            on_disk += _bytes_below(part.path)
    filmed = sum(load_simulator(cfg).num_pixels(split, pairs) for split, pairs in wanted.items())
    return on_disk + round(filmed * BYTES_PER_FILMED_PIXEL)


def _bytes_below(folder: Place) -> int:
    if isinstance(folder, StorePath):
        return sum(meta["size"] for _, meta in folder.files())
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
