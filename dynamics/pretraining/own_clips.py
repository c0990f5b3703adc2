"""A base's corpus from a user's own clips and labels: frames without any text, and words.

N frames, L codes a frame.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamics.core.config import LoopConfig
from dynamics.core.images import encode_png
from dynamics.core.progress import Progress
from dynamics.core.records import stable_hash
from dynamics.core.seeds import numpy_rng
from dynamics.models.image_tokenizers.fsq import FsqTokenizer
from dynamics.models.tokens import Rows, Tokens
from dynamics.pretraining.frames import Footage, list_frames, read_footage, read_heldout
from dynamics.pretraining.image_tokenizer import (
    Frames,
    choose_image_tokenizer,
    fit_image_tokenizer,
    sight,
)
from dynamics.pretraining.make import Lessons
from dynamics.pretraining.vocabulary import SPARE_WORDS, prompts, words_of
from dynamics.storage.files import new_folder

TRIAL_PX = 192
"""Side of the frames of trials: a multiple of most tokenizers' frames."""
_TRIAL_FRAMES = 1500
RECONSTRUCTION = "reconstruction.png"
"""In the checkpoint: held-out frames beside what is left of them."""
_SHOWN, _SHOWN_PX = 8, 96
_ENCODED = 512
"""Frames that are encoded between two calls of progress."""
Codes = NDArray[np.int64]


def reconstruction(images: FsqTokenizer, first: Frames, second: Frames) -> bytes:
    """A PNG: pairs above each other, real frames left, decoded ones right.

    Pairs are spread from the smallest change to the largest.
    """
    motion = np.abs(first.astype(np.int16) - second).mean(axis=(1, 2, 3))
    order = np.argsort(motion, kind="stable")
    rows = order[np.linspace(0, len(order) - 1, min(_SHOWN, len(order))).astype(int)]
    ends = [frames[rows] for frames in (first, second)]
    decoded = [images.decode(images.encode(frames)) for frames in ends]
    scale = max(1, _SHOWN_PX // images.frame_px)
    large = [frames.repeat(scale, 1).repeat(scale, 2) for frames in (*ends, *decoded)]
    return encode_png(np.concatenate([np.concatenate(frames) for frames in large], axis=1))


def _encoded(images: FsqTokenizer, frames: Frames, progress: Progress) -> Codes:
    """Codes of many frames, [N, L]."""
    parts = []
    for start in range(0, len(frames), _ENCODED):
        parts.append(images.encode(frames[start : start + _ENCODED]))
        progress(min(start + _ENCODED, len(frames)), len(frames), "encode frames")
    return np.concatenate(parts)


class OwnClips:
    """`dynamics.pretraining.make.Corpus` of a run's pool and labelled set."""

    def __init__(self, cfg: LoopConfig, progress: Progress) -> None:
        self._cfg = cfg
        self._listed = list_frames(cfg, progress)
        said = [pair.action for pair in (*self._listed.labelled, *self._listed.heldout)]
        mirrored = (cfg.labelled.mirror or {}).values()
        self.words = list(dict.fromkeys([*words_of([*said, *mirrored]), *SPARE_WORDS.split()]))
        self.prompts = prompts(said)
        self._shown = b""

    @property
    def about(self) -> Mapping[str, Any]:
        """The clips, labels and key frames that it is made from."""
        listed = self._listed
        clips = stable_hash(*(f"{clip.name} {clip.version}" for clip in listed.clips))
        held = stable_hash(*sorted({pair.name for pair in listed.heldout}))
        return {
            "clips": clips,
            "heldout": held,
            "words": stable_hash(*self.words),
            "keyframes": self._cfg.pool.keyframes.model_dump(mode="json"),
        }

    def tasks(self, num_tokens: int) -> Sequence[str]:
        """No word: a frame is followed by another."""
        return ()

    def image_tokenizer(
        self, work: Path, progress: Progress
    ) -> tuple[FsqTokenizer, Mapping[str, Any]]:
        """Choose its size on some clips, fit it to all, and measure it on held-out pairs."""
        cfg, chosen = self._cfg, self._cfg.pretrain
        trial = read_footage(cfg, self._listed, TRIAL_PX, _TRIAL_FRAMES, progress)
        order = numpy_rng(cfg.seed, "trial").permutation(len(trial.pairs))
        config, tried = choose_image_tokenizer(
            *(frames[order] for frames in trial.ends),
            chosen.codes_a_side,
            chosen.levels,
            steps=chosen.trial_steps,
            seed=cfg.seed,
            progress=progress,
        )
        footage = self._footage(work, config.frame_px, progress)
        images = fit_image_tokenizer(
            *footage.ends,
            config,
            steps=chosen.tokenizer_steps,
            seed=cfg.seed,
            progress=progress,
        )
        held = read_heldout(cfg, self._listed, config.frame_px, progress)
        return images, {
            "codes_a_frame": images.num_tokens,
            "frame_px": images.frame_px,
            "heldout": asdict(sight(images, *held.ends)),
            "tried": {f"{side} x {side}": asdict(found) for side, found in tried.items()},
        }

    def _footage(self, work: Path, px: int, progress: Progress) -> Footage:
        """All frames that it learns from, read once."""
        folder = work / "frames"
        if not folder.exists():
            found = read_footage(
                self._cfg, self._listed, px, self._cfg.pretrain.num_frames, progress
            )
            with new_folder(folder, last="frames.npy") as fresh:
                found.save(fresh)
        return Footage.load(folder)

    def lessons(
        self, images: FsqTokenizer, tokens: Tokens, work: Path, progress: Progress
    ) -> Lessons:
        """Every frame to the one after it."""
        footage = self._footage(work, images.frame_px, progress)
        held = read_heldout(self._cfg, self._listed, images.frame_px, progress)
        self._shown = reconstruction(images, *held.ends)
        seed = self._cfg.seed

        def batches(start: int) -> Iterator[dict[str, Rows]]:
            for step in count(start):
                chosen = numpy_rng(seed, "base", step).choice(footage.pairs, 32)
                yield {"next": self._next(codes, chosen, tokens)}

        codes, held_codes = (
            _encoded(images, frames.frames, progress) for frames in (footage, held)
        )
        return Lessons(batches, [{"next": self._next(held_codes, held.pairs[:256], tokens)}])

    def _next(self, codes_NL: Codes, pairs: NDArray[np.int64], tokens: Tokens) -> Rows:
        prompt = tokens.fdp_prompt(codes_NL[pairs[:, 0]], [None] * len(pairs))
        return tokens.code_rows(prompt, codes_NL[pairs[:, 1]])

    def save(self, folder: Path) -> None:
        """Add held-out frames beside what is left of them."""
        (folder / RECONSTRUCTION).write_bytes(self._shown)
