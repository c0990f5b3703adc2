"""A base's corpus from a user's own clips and labels: frames without any text, and words.

N frames, L codes a frame.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamics.core.config import LoopConfig
from dynamics.core.errors import UserError
from dynamics.core.images import encode_png
from dynamics.core.progress import Progress
from dynamics.core.records import stable_hash
from dynamics.core.seeds import numpy_rng
from dynamics.models.image_tokenizers.fsq import FsqTokenizer
from dynamics.models.tokens import Tokens
from dynamics.pretraining.frames import Footage, list_frames, read_footage, read_heldout
from dynamics.pretraining.image_tokenizer import (
    Frames,
    choose_image_tokenizer,
    fit_image_tokenizer,
    sight,
)
from dynamics.pretraining.make import Lessons
from dynamics.pretraining.tasks import Frames as CodedFrames
from dynamics.pretraining.tasks import FrameTasks, task_words
from dynamics.pretraining.vocabulary import SPARE_WORDS, prompts, words_of
from dynamics.storage.files import new_folder

TRIAL_PX = 192
"""Side of the frames of trials: a multiple of most tokenizers' frames."""
_TRIAL_FRAMES = 1500
_BLIND = 0.5
"""Share of the held-out pairs that a tokenizer tells apart below which no base is made on it."""
RECONSTRUCTION = "reconstruction.png"
"""In the checkpoint: held-out frames beside what is left of them."""
_SHOWN, _SHOWN_PX = 8, 128
_ENCODED = 512
"""Frames that are encoded between two calls of progress."""
_HELDOUT_BATCHES = 8
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
    """`dynamics.pretraining.make.Corpus` of a run's clips and labels, or of a world's films."""

    def __init__(self, cfg: LoopConfig, work: Path, progress: Progress) -> None:
        self._cfg, self._work = cfg, work
        self._listed = list_frames(cfg, work / "filmed", progress)
        said = self._listed.sentences
        mirrored = (cfg.labelled.mirror or {}).values()
        self.words = list(dict.fromkeys([*words_of([*said, *mirrored]), *SPARE_WORDS.split()]))
        self.prompts = prompts(said)
        self._shown = b""

    @property
    def about(self) -> Mapping[str, Any]:
        """The clips, labels and key frames that it is made from."""
        cfg, listed = self._cfg, self._listed
        clips = (f"{one.clip.name} {one.clip.version} {one.keyframes}" for one in listed.clips)
        numbers = (cfg.pool.num_pairs, cfg.labelled.num_pairs, cfg.labelled.num_heldout)
        filmed = cfg.labelled.dataset is None
        return {
            "clips": stable_hash(*clips),
            "labels": stable_hash(*(f"{pair.name} {pair.action}" for pair in listed.labelled)),
            "heldout": stable_hash(*sorted(listed.heldout_digests)),
            "words": stable_hash(*self.words),
            "films": stable_hash(cfg.world.model_dump_json(), *numbers) if filmed else "",
        }

    def tasks(self, num_tokens: int) -> Sequence[str]:
        """Words that name a frame's places, and what can be asked about two frames."""
        return task_words(num_tokens)

    def image_tokenizer(self, progress: Progress) -> tuple[FsqTokenizer, Mapping[str, Any]]:
        """Choose its size on some clips, fit it to all, and measure it on held-out pairs."""
        cfg, chosen = self._cfg, self._cfg.pretrain
        trial = read_footage(cfg, self._listed, TRIAL_PX, _TRIAL_FRAMES, progress)
        order = numpy_rng(cfg.seed, "trial").permutation(len(trial.pairs))
        config, tried = choose_image_tokenizer(
            trial.ends[0][order],
            trial.ends[1][order],
            chosen.codes_a_side,
            chosen.levels,
            steps=chosen.trial_steps,
            seed=cfg.seed,
            progress=progress,
        )
        footage = self._footage(config.frame_px, progress)
        images = fit_image_tokenizer(
            *footage.ends, config, steps=chosen.tokenizer_steps, seed=cfg.seed, progress=progress
        )
        held = read_heldout(cfg, self._listed, config.frame_px, progress)
        sees = sight(images, *held.ends)
        if sees.seen < _BLIND:
            raise UserError(
                f"with {images.num_tokens} codes a frame only {100 * sees.seen:.0f} % of the "
                "held-out pairs differ, so no base is made: what happens is too small or too "
                "faint in the picture. Crop the clips to it, or give more codes, e.g. "
                "--set pretrain.codes_a_side=[8,12,16]"
            )
        return images, {
            "codes_a_frame": images.num_tokens,
            "frame_px": images.frame_px,
            "heldout": asdict(sees),
            "tried": {f"{side} x {side}": asdict(found) for side, found in tried.items()},
        }

    def _footage(self, px: int, progress: Progress) -> Footage:
        """All frames that it learns from, read once."""
        folder = self._work / "frames"
        if not folder.exists():
            most = self._cfg.pretrain.num_frames
            found = read_footage(self._cfg, self._listed, px, most, progress)
            with new_folder(folder, last="frames.npy") as fresh:
                found.save(fresh)
        return Footage.load(folder)

    def lessons(self, images: FsqTokenizer, tokens: Tokens, progress: Progress) -> Lessons:
        """What frames ask by themselves, of those that it learns from and of held-out ones."""
        footage = self._footage(images.frame_px, progress)
        held = read_heldout(self._cfg, self._listed, images.frame_px, progress)
        self._shown = reconstruction(images, *held.ends)
        learnt, kept = (
            FrameTasks(
                CodedFrames(_encoded(images, one.frames, progress), one.clip),
                tokens,
                self._cfg.seed,
            )
            for one in (footage, held)
        )
        return Lessons(learnt.batches, list(islice(kept.batches(0), _HELDOUT_BATCHES)))

    def save(self, folder: Path) -> None:
        """Add held-out frames beside what is left of them."""
        (folder / RECONSTRUCTION).write_bytes(self._shown)
