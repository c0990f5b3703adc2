"""FLOPs and steps of a run, from `Sizes`. Every formula stands where it is used."""

import math
from dataclasses import dataclass

from dynamics.core.config import LoopConfig
from dynamics.labelling.confidence import SCORES
from dynamics.plan.sizes import Sizes
from dynamics.training.loss import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskPlan:
    """A task's training in numbers."""

    task: Task
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


def task_plan(cfg: LoopConfig, sizes: Sizes, task: Task, workers: int) -> TaskPlan:
    """Steps, tokens and FLOPs of a task's fits on so many workers."""
    train = cfg.train.of(task)
    per_worker = math.ceil(train.batch_size / workers)
    tokens = sizes.fdp_tokens if task == "fdp" else sizes.idm_tokens
    return TaskPlan(
        task=task,
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
    scored, columns = scored_positions(sizes, task)
    head = 2.0 * scored * sizes.width * columns
    head *= 3 if cfg.train.method == "full" or sizes.saved_modules else 2
    backward = linear + 2 * (forward - linear) + trained
    again = forward if cfg.train.gradient_checkpointing else 0.0
    return forward + backward + adapter + head + again


def scored_positions(sizes: Sizes, task: Task) -> tuple[int, int]:
    """Positions of a row with a loss, and the vocabulary rows that they are projected on."""
    if task == "fdp":
        return sizes.image_tokens, sizes.num_codes
    return sizes.action_tokens + 1, sizes.vocabulary


def sampled_sentences(cfg: LoopConfig) -> int:
    """Sentences of a pair that are drawn at once: one, or as many as the score wants."""
    needs = SCORES[cfg.filter.score].needs
    if needs == "samples":
        return cfg.label.agreement_samples
    return cfg.label.candidates if needs == "fdp_loglik" else 1


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


def pool_frames(cfg: LoopConfig) -> int:
    """Frames of the pool's pairs: k key frames of a clip make k - 1 pairs."""
    k = cfg.pool.keyframes.top_k
    return math.ceil(cfg.pool.most_pairs * k / (k - 1))
