"""A base's corpus from a user's own clips and labels: frames without any text, and words.

N frames, L codes a frame.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamics.core.config import LoopConfig
from dynamics.core.images import encode_png
from dynamics.core.progress import Progress
from dynamics.core.records import stable_hash
from dynamics.models.image_tokenizers.fsq import FsqTokenizer
from dynamics.pretraining.frames import Footage, list_frames, read_footage, read_heldout
from dynamics.pretraining.image_tokenizer import (
    Frames,
    choose_image_tokenizer,
    fit_image_tokenizer,
    sight,
)
from dynamics.pretraining.vocabulary import SPARE_WORDS, prompts, words_of
from dynamics.storage.files import new_folder

TRIAL_PX = 192
"""Side of the frames of trials: a multiple of most tokenizers' frames."""
_TRIAL_FRAMES = 1500
RECONSTRUCTION = "reconstruction.png"
"""In the checkpoint: held-out frames beside what is left of them."""
_SHOWN, _SHOWN_PX = 8, 96


def _ends(footage: Footage, pairs: NDArray[np.int64]) -> tuple[Frames, Frames]:
    """The first and the second frames of pairs."""
    return footage.frames[pairs[:, 0]], footage.frames[pairs[:, 1]]


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


class OwnClips:
    """`dynamics.pretraining.make.Corpus` of a run's pool and labelled set."""

    def __init__(self, cfg: LoopConfig, progress: Progress) -> None:
        self._cfg = cfg
        self._listed = list_frames(cfg, progress)
        said = [pair.action for pair in (*self._listed.labelled, *self._listed.heldout)]
        mirrored = (cfg.labelled.mirror or {}).values()
        self.words = list(dict.fromkeys([*words_of([*said, *mirrored]), *SPARE_WORDS.split()]))
        self.prompts = prompts(said)
        self._shown: bytes | None = None

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

    def image_tokenizer(
        self, work: Path, progress: Progress
    ) -> tuple[FsqTokenizer, Mapping[str, Any]]:
        """Choose its size on some clips, fit it to all, and measure it on held-out pairs."""
        cfg, chosen = self._cfg, self._cfg.pretrain
        trial = read_footage(cfg, self._listed, TRIAL_PX, _TRIAL_FRAMES, progress)
        order = np.random.default_rng(cfg.seed).permutation(trial.pairs)
        config, tried = choose_image_tokenizer(
            *_ends(trial, order),
            chosen.codes_a_side,
            chosen.levels,
            steps=chosen.trial_steps,
            seed=cfg.seed,
            progress=progress,
        )
        footage = self._footage(work, config.frame_px, progress)
        images = fit_image_tokenizer(
            *_ends(footage, footage.pairs),
            config,
            steps=chosen.tokenizer_steps,
            seed=cfg.seed,
            progress=progress,
        )
        held = read_heldout(cfg, self._listed, config.frame_px, progress)
        first, second = _ends(held, held.pairs)
        (work / RECONSTRUCTION).write_bytes(reconstruction(images, first, second))
        return images, {
            "codes_a_frame": images.num_tokens,
            "frame_px": images.frame_px,
            "heldout": asdict(sight(images, first, second)),
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

    def save(self, folder: Path) -> None:
        """Write nothing: the words are the tokenizer's."""
