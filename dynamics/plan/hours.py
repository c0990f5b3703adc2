"""Wall and GPU hours of a run by stage, on the machines of a cluster.

Constants were measured: on an H100 (docs/LOG.md, 2026-11-27) or, for CPUs, by `benchmarks/plan.py`.
"""

import math
import time
from dataclasses import dataclass

import torch

from dynamics.core.config import LoopConfig
from dynamics.core.domain import Split, load_simulator
from dynamics.inference.budget import cache_bytes
from dynamics.plan.cluster import Card, Cluster
from dynamics.plan.flops import TaskPlan, forward_flops, label_flops, pool_frames, sampled_sentences
from dynamics.plan.memory import Stage, batches
from dynamics.plan.sizes import Sizes
from dynamics.training.loss import Task
from dynamics.training.schedule import Schedule, schedule_of

GPU_UTILISATION = 0.24
"""Share of a card's data sheet that training and prefills reach: 240 of 989 TFLOP/s on an H100."""
CPU_UTILISATION = 0.33
"""Share of a core's speed in large products that a small model's stages reach."""
_TOKENIZER_BYTES = 0.065
"""Bytes that a GPU moves for each FLOP of a VQGAN, whose time that is: an H100 encoded 104 frames
of 512 px a second, an H200 120."""
_DECODER_FLOPS = 1.6
"""FLOPs of the VQGAN's decoder over its encoder's: a residual block more on every level. A CPU took
21 s for a frame that it encodes in 13 s, an H100 15 ms and 9.6 ms."""
_LAYER_STEP_S = {"gpu": 1.65e-3, "merged": 0.7e-3, "cpu": 0.1e-3}
"""Least time of a layer for one more token of any number of rows, in which a GPU starts kernels;
merged adapters were not measured."""
_CACHE_PASSES = 3
"""Times that keys and values move for a token: they are read, and copied to where one more fits."""
_READ_S_PER_PIXEL = 1e-8
"""CPU seconds a pixel of a video that is decoded and searched for key frames."""
_FILM_S_PER_PIXEL = 6e-8
"""Seconds a pixel of a clip that is filmed first, by the driver alone."""
_VIDEO_PIXELS = 250 * 340 * 256
"""Pixels of a clip whose length is not known: 10 s of the usual sets."""
_PICTURE_PIXELS = 512 * 512
_HASH_S = 0.4e-3
"""Seconds of the driver for the hash of a frame, and its comparison with the held-out ones."""
_CORE_TFLOPS = 0.1
"""Speed of the cores that the seconds of CPUs were measured on."""
_START_S = {"ingest": 15.0, "label": 9.0, "evaluate": 10.0, "train": 16.0, "serve": 17.0}
"""Seconds in which a stage's processes start and load a small model; ingest's are those of the
command, Ray and its first reader."""
_KEPT_START_S = 3.0
"""Seconds in which labelling and evaluation start without GPUs, in processes that are there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Speed of a card, or of a core."""

    tflops: float
    """In large matrix products, 10^12 operations a second."""
    utilisation: float
    """Share of it that the model's own products reach."""
    bandwidth: float | None
    """Bytes a second of a card's memory; None = a core."""

    @property
    def reached(self) -> float:
        """Operations a second."""
        return self.tflops * 1e12 * self.utilisation

    @property
    def stretch(self) -> float:
        """Factor on measured seconds of CPUs: a slower core, or one with other work, takes longer.

        Beside cards CPUs are taken to be quiet.
        """
        return 1.0 if self.bandwidth else max(1.0, _CORE_TFLOPS / self.tflops)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageHours:
    """A stage over all rounds."""

    workers: int
    gpus: float
    """GPUs that they hold together."""
    wall: float
    """Hours."""

    @property
    def gpu_hours(self) -> float:
        """Hours times GPUs held."""
        return self.wall * self.gpus


def card_speed(card: Card) -> Speed:
    """Speed of a card by its data sheet, and the share of it that was measured on another."""
    return Speed(tflops=card.tflops, utilisation=GPU_UTILISATION, bandwidth=card.bandwidth)


def measured_core() -> Speed:
    """Speed of one core of this machine in float32."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        factor = torch.rand(768, 768)
        factor @ factor
        best = math.inf
        for _ in range(5):
            start = time.perf_counter()
            factor @ factor
            best = min(best, time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return Speed(tflops=2 * 768**3 / best / 1e12, utilisation=CPU_UTILISATION, bandwidth=None)


def workers_of(cfg: LoopConfig, stage: Stage, cluster: Cluster) -> tuple[int, float]:
    """Workers that a stage has on the cluster, of as many as it asks for, and the GPUs of one."""
    wanted, gpus = {
        "ingest": (cfg.ingest.num_actors, cfg.ingest.num_gpus_per_actor),
        "label": (cfg.label.num_actors, cfg.label.num_gpus_per_actor),
        "train": (2 * cfg.train.num_workers, cfg.train.num_gpus_per_worker),
        "evaluate": (cfg.evaluate.num_actors, cfg.label.num_gpus_per_actor),
        "serve": (cfg.serve.num_replicas, cfg.serve.num_gpus_per_replica),
    }[stage]
    room = math.floor(cluster.cards / gpus) if gpus else cluster.cpus
    return min(wanted, room), gpus


def hours(
    cfg: LoopConfig, sizes: Sizes, tasks: dict[Task, TaskPlan], cluster: Cluster, speed: Speed
) -> dict[str, StageHours]:
    """Hours by stage; training by the run's own schedule."""
    work = _Work(cfg, sizes, speed, cluster)
    # By stage: seconds that its workers share, seconds that nobody shares, starts of its workers.
    parts: dict[str, tuple[Stage, float, float, int]] = {
        "ingest": ("ingest", work.encoding, work.filming, 1),
        "guard": ("ingest", work.guard, work.hashing, 0),
        "label": ("label", work.label, 0.0, cfg.rounds),
        "evaluate": ("evaluate", work.evaluate, 0.0, cfg.rounds + 1),
    }
    found: dict[str, StageHours] = {}
    for name, (stage, shared, alone, starts) in parts.items():
        workers, gpus = workers_of(cfg, stage, cluster)
        seconds = shared / workers / min(1.0, gpus or 1.0) if workers else math.inf
        if name == "ingest":  # videos are read by all CPUs meanwhile
            seconds = max(seconds, work.reading / cluster.cpus)
        start = _START_S[stage] if gpus or stage == "ingest" else _KEPT_START_S
        seconds += alone + starts * start * speed.stretch
        found[name] = StageHours(workers=workers, gpus=workers * gpus, wall=seconds / 3600)
    workers, gpus = workers_of(cfg, "train", cluster)
    wall = training_hours(cfg, tasks, cluster, speed)[own_schedule(cfg, tasks, workers)]
    found["train"] = StageHours(workers=workers, gpus=workers * gpus, wall=wall)
    if cfg.serve.enabled:
        found["serve"] = _serving(cfg, speed)
    return found


def _serving(cfg: LoopConfig, speed: Speed) -> StageHours:
    """The service until its first answer; what it holds it holds while it is up."""
    serve = cfg.serve
    gpus = serve.num_replicas * serve.num_gpus_per_replica
    gpus += serve.verifier_replicas * serve.num_gpus_per_verifier
    workers = serve.num_replicas + serve.verifier_replicas
    wall = _START_S["serve"] * speed.stretch / 3600
    return StageHours(workers=workers, gpus=gpus, wall=wall)


def own_schedule(cfg: LoopConfig, tasks: dict[Task, TaskPlan], workers: int) -> Schedule:
    """The schedule that the run takes with so many workers: alone, one has no choice."""
    steps = {task: plan.steps for task, plan in tasks.items()}
    return schedule_of(cfg.train, steps) if workers >= len(tasks) else "sequence"


def training_hours(
    cfg: LoopConfig, tasks: dict[Task, TaskPlan], cluster: Cluster, speed: Speed
) -> dict[Schedule, float]:
    """Wall hours of all fits by schedule; infinite where no worker is left for a fit.

    Rows of a step are dealt out one by one, so the busiest worker takes a whole number of them.
    """
    workers, gpus = workers_of(cfg, "train", cluster)
    reached = speed.reached * min(1.0, gpus or 1.0)
    starts = (cfg.rounds + 1) * _START_S["train"] * speed.stretch

    def one(plan: TaskPlan, size: int) -> float:
        if not size:
            return math.inf
        rows = plan.steps * math.ceil(plan.rows_per_step / size)
        return rows * plan.tokens_per_row * plan.flops_per_token / reached

    together = max(one(plan, workers // len(tasks)) for plan in tasks.values())
    sequence = sum(one(plan, workers) for plan in tasks.values())
    # A core that computes both is no faster for it.
    if not gpus and workers < len(tasks):
        together = sequence
    return {"together": (together + starts) / 3600, "sequence": (sequence + starts) / 3600}


class _Work:
    """Seconds of one worker for a whole run, by what it does."""

    def __init__(self, cfg: LoopConfig, sizes: Sizes, speed: Speed, cluster: Cluster) -> None:
        self._cfg, self._sizes, self._speed, self._cluster = cfg, sizes, speed, cluster
        labelled, heldout = 2 * cfg.labelled.num_pairs, 2 * cfg.labelled.num_heldout
        self._frame_s = self._tokenizer_seconds()
        self.encoding = (pool_frames(cfg) + labelled + heldout) * self._frame_s
        self.guard = (pool_frames(cfg) + heldout) * self._frame_s * _DECODER_FLOPS
        self.hashing = (pool_frames(cfg) + heldout) * _HASH_S * speed.stretch
        filmed, pixels = _pixels(cfg)
        self.filming = filmed * _FILM_S_PER_PIXEL * speed.stretch
        self.reading = pixels * _READ_S_PER_PIXEL * speed.stretch
        self.label = cfg.rounds * self._labelling(cfg.pool.most_pairs)
        self.evaluate = (cfg.rounds + 1) * self._evaluation()

    def _tokenizer_seconds(self) -> float:
        flops = self._sizes.tokenizer_flops
        if self._speed.bandwidth is None:
            return flops / self._speed.reached
        return flops * _TOKENIZER_BYTES / self._speed.bandwidth

    def _wait(self, rows: int, tokens: int) -> float:
        """Seconds for a token more of ``rows`` that are ``tokens`` long, its products left out."""
        sizes, bandwidth = self._sizes, self._speed.bandwidth
        if bandwidth is None:
            return sizes.num_layers * _LAYER_STEP_S["cpu"] * self._speed.stretch
        moved = rows * tokens * cache_bytes(sizes) * _CACHE_PASSES
        moved += sizes.weight_bytes * sizes.layers
        layer = _LAYER_STEP_S["merged" if self._cfg.model.merge_adapters else "gpu"]
        return max(sizes.num_layers * layer, moved / bandwidth)

    def _rows(self, stage: Stage, kind: str) -> int:
        """Rows of a batch, as the engines' budgets cut it on the cluster's card."""
        _, gpus = workers_of(self._cfg, stage, self._cluster)
        card, room = self._cluster.card, None
        if card is not None and gpus:
            room = round(card.memory * min(1.0, gpus))
        return batches(self._cfg, self._sizes, stage, room)[kind][0]

    def _labelling(self, pairs: int) -> float:
        cfg, sizes, batch = self._cfg, self._sizes, self._rows("label", "sentences")
        rows = min(batch, pairs) * sampled_sentences(cfg)
        steps = min(cfg.label.max_action_tokens, sizes.action_tokens + 1)
        waiting = math.ceil(pairs / batch) * steps * self._wait(rows, sizes.idm_tokens)
        return pairs * label_flops(cfg, sizes) / self._speed.reached + waiting

    def _evaluation(self) -> float:
        """A greedy sentence and frame of every pair, and N samples, scored, of the first ones."""
        cfg, sizes = self._cfg, self._sizes
        pairs = cfg.labelled.num_heldout
        samples, drawn = max(cfg.evaluate.best_of), min(pairs, cfg.evaluate.num_best_of_items)
        frames = 2 * pairs + drawn * (samples - 1)
        scored = pairs + drawn * (samples + 1)
        flops = scored * forward_flops(sizes, sizes.idm_tokens)
        flops += 2 * pairs * forward_flops(sizes, sizes.fdp_tokens - sizes.image_tokens)
        flops += frames * 2 * sizes.layers * sizes.image_tokens
        steps = min(cfg.label.max_action_tokens, sizes.action_tokens + 1)
        texts, sources = (self._rows("evaluate", kind) for kind in ("sentences", "frames"))
        waiting = 0.0
        for count, each in ((drawn, samples), (pairs - drawn, 1)):
            rows = min(texts, count)
            waiting += math.ceil(count / texts) * steps * self._wait(rows, sizes.fdp_tokens)
            greedy, many = (
                self._wait(min(sources, count) * ways, sizes.fdp_tokens) for ways in (1, each)
            )
            waiting += math.ceil(count / sources) * sizes.image_tokens * (greedy + many)
        return flops / self._speed.reached + waiting


def _pixels(cfg: LoopConfig) -> tuple[float, float]:
    """Pixels of the videos that are filmed, and of all that are read."""
    filmed = 0.0
    read = 0.0
    wanted: dict[Split, int] = {}
    if cfg.labelled.dataset is None:
        wanted = {"labelled": cfg.labelled.num_pairs, "heldout": cfg.labelled.num_heldout}
    else:
        read += 2 * (cfg.labelled.num_pairs + cfg.labelled.num_heldout) * _PICTURE_PIXELS
    if cfg.pool.parts:
        read += cfg.pool.most_pairs / (cfg.pool.keyframes.top_k - 1) * _VIDEO_PIXELS
    else:
        wanted["pool"] = cfg.pool.num_pairs
    if wanted:
        world = load_simulator(cfg)
        filmed = float(sum(world.num_pixels(split, pairs) for split, pairs in wanted.items()))
    return filmed, filmed + read
