"""The tabletop's corpus of a base: a network that knows pictures and words, not actions.

Every user starts from the base that the repository ships, as with the 7B weights.

B rows, T positions, L codes a frame.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynamics.core.config import LoopConfig, WorldConfig
from dynamics.core.progress import Progress
from dynamics.core.seeds import numpy_rng
from dynamics.models.image_tokenizers.fsq import FsqConfig, FsqTokenizer
from dynamics.models.tokens import IGNORE, Rows, Tokens
from dynamics.pretraining.image_tokenizer import fit_image_tokenizer
from dynamics.pretraining.make import Lessons
from dynamics.pretraining.vocabulary import prompts
from dynamics.tabletop.language import action_words
from dynamics.tabletop.pretraining.base_corpus import (
    Corpus,
    ask_about_one,
    ask_about_two,
    base_words,
    build_corpus,
    caption,
)
from dynamics.tabletop.pretraining.photographs import crowded_tables, read_back
from dynamics.tabletop.seen import SEEN_FILE

TASK_WORDS = ("[caption]", "[question]", "[compare]", "[draw]", "[video]")
TEXT_TOKENS = 40
"""Room for several questions with their answers after the pictures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusSizes:
    """Pictures of the corpus, and how often they are asked about."""

    num_tables: int = 3000
    tokenizer_film_scale: int = 3
    """Photographs are taken this many times larger than the model's frames, and scaled down."""
    corpus_film_scale: int = 2
    num_doubles: int = 30_000
    num_episodes: int = 8_000
    episode_length: int = 6
    rows_per_task: tuple[int, int, int, int, int] = (4, 14, 50, 14, 32)
    """caption, question, compare, draw, video."""


def tabletop_words(grid: int) -> list[str]:
    """Words of captions, questions and action sentences."""
    return sorted({*base_words(grid), *action_words()})


class BaseTasks:
    """Draws training rows for the five tasks."""

    def __init__(self, corpus: Corpus, tokens: Tokens) -> None:
        self.corpus = corpus
        self.tokens = tokens
        self._ids: dict[str, list[int]] = {}

    def _text(self, text: str) -> list[int]:
        """Word ids; words are few, so each is looked up once."""
        ids: list[int] = []
        for word in text.split():
            if word not in self._ids:
                self._ids[word] = self.tokens.text_ids(word)
            ids += self._ids[word]
        return ids

    def _after_pictures(
        self, blocks: list[Tensor], task: str, texts: list[list[tuple[str, str]]]
    ) -> Rows:
        """[bos task pictures q a eos q a eos ..]: loss on the answers and their eos."""
        tokens = self.tokens
        prefix = torch.tensor([tokens.bos, *self._text(task)]).expand(len(texts), -1)
        prompt = torch.cat([prefix, *blocks], dim=1)
        ids = torch.full((len(texts), TEXT_TOKENS + 1), tokens.pad)
        scored = torch.zeros_like(ids, dtype=torch.bool)
        for row, qas in enumerate(texts):
            at = 0
            for question, answer in qas:
                q, a = self._text(question), [*self._text(answer), tokens.eos]
                if at + len(q) + len(a) > TEXT_TOKENS + 1:
                    break
                ids[row, at : at + len(q) + len(a)] = torch.tensor(q + a)
                scored[row, at + len(q) : at + len(q) + len(a)] = True
                at += len(q) + len(a)
        full = torch.cat([prompt, ids], dim=1)
        labels = torch.full_like(full, IGNORE)
        labels[:, prompt.shape[1] :][scored] = ids[scored]
        return Rows(full[:, :-1], labels[:, 1:])

    def captions(self, rows: np.ndarray) -> Rows:
        """Picture to caption."""
        blocks = [self.tokens.image_block(self.corpus.first_codes[rows])]
        return self._after_pictures(
            blocks, "[caption]", [[("", caption(self.corpus.first[i]))] for i in rows]
        )

    def questions(self, rows: np.ndarray, rng: np.random.Generator) -> Rows:
        """Questions about one picture."""
        blocks = [self.tokens.image_block(self.corpus.first_codes[rows])]
        texts = [[ask_about_one(self.corpus.first[i], rng) for _ in range(6)] for i in rows]
        return self._after_pictures(blocks, "[question]", texts)

    def comparisons(self, rows: np.ndarray, rng: np.random.Generator) -> Rows:
        """Questions about two pictures."""
        corpus = self.corpus
        blocks = [
            self.tokens.image_block(corpus.first_codes[rows]),
            self.tokens.image_block(corpus.second_codes[rows]),
        ]
        texts = [
            [ask_about_two(corpus.first[i], corpus.second[i], rng) for _ in range(6)] for i in rows
        ]
        return self._after_pictures(blocks, "[compare]", texts)

    def drawings(self, rows: np.ndarray) -> Rows:
        """Caption to picture."""
        tokens, corpus = self.tokens, self.corpus
        texts = [self._text(caption(corpus.second[i])) for i in rows]
        width = max(map(len, texts))
        padded = torch.tensor([[tokens.pad] * (width - len(text)) + text for text in texts])
        prefix = torch.tensor([tokens.bos, *self._text("[draw]")]).expand(len(rows), -1)
        block = tokens.image_block(corpus.second_codes[rows])
        full = torch.cat([prefix, padded, block], dim=1)[:, :-1]
        return self._codes_scored(full)

    def videos(self, rows: np.ndarray) -> Rows:
        """Frame to next frame, without any text: the FDP layout with an empty action."""
        tokens, corpus = self.tokens, self.corpus
        prefix = torch.tensor(
            [tokens.bos, *self._text("[video]")] + [tokens.pad] * tokens.prompts.action_tokens
        )
        blocks = [
            tokens.image_block(c[rows])
            for c in (corpus.video_source_codes, corpus.video_target_codes)
        ]
        return self._codes_scored(torch.cat([prefix.expand(len(rows), -1), *blocks], dim=1)[:, :-1])

    def _codes_scored(self, full: Tensor) -> Rows:
        """Loss on the last L ids, which are codes."""
        labels = torch.full_like(full, IGNORE)
        labels[:, -self.tokens.num_image_tokens :] = full[:, -self.tokens.num_image_tokens :]
        return Rows(full[:, :-1], labels[:, 1:])

    def batches(self, rows_per_task: Sequence[int], seed: int) -> Iterator[dict[str, Rows]]:
        """Endless steps, one batch a task each."""
        rng = numpy_rng(seed, "base-batches")
        singles, videos = len(self.corpus.first), len(self.corpus.video_source_codes)
        c, q, m, d, v = rows_per_task
        while True:
            yield {
                "caption": self.captions(rng.integers(singles, size=c)),
                "question": self.questions(rng.integers(singles, size=q), rng),
                "compare": self.comparisons(rng.integers(singles, size=m), rng),
                "draw": self.drawings(rng.integers(singles, size=d)),
                "video": self.videos(rng.integers(videos, size=v)),
            }


class TabletopCorpus:
    """`dynamics.pretraining.make.Corpus` of pictures that are drawn: no action, no transition."""

    prompts = prompts(())

    def __init__(
        self, cfg: LoopConfig, work: Path, progress: Progress, sizes: CorpusSizes | None = None
    ) -> None:
        self._cfg = cfg
        self._world = cfg.world
        self._sizes = sizes or CorpusSizes()
        self._corpus: Corpus | None = None
        self.words = tabletop_words(cfg.world.grid)

    @property
    def about(self) -> dict[str, Any]:
        """The world, and the numbers of pictures."""
        return {"world": self._world.model_dump(), "corpus": asdict(self._sizes)}

    def tasks(self, num_tokens: int) -> Sequence[str]:
        """The words that begin a task's rows."""
        return TASK_WORDS

    def image_tokenizer(self, progress: Progress) -> tuple[FsqTokenizer, dict[str, Any]]:
        """One code a cell, fitted to photographs; measured by what the oracle reads."""
        cfg, world = self._cfg, self._filmed(self._sizes.tokenizer_film_scale)
        rng = numpy_rng(cfg.seed, "image-tokenizer-data")
        images = fit_image_tokenizer(
            *crowded_tables(self._sizes.num_tables, world, rng),
            FsqConfig(frame_px=world.frame_px, patch_px=world.cell_px, levels=cfg.pretrain.levels),
            steps=cfg.pretrain.tokenizer_steps,
            seed=cfg.seed,
            progress=progress,
        )
        return images, read_back(images, self._world, num=1000, seed=cfg.seed + 1)

    def _filmed(self, scale: int) -> WorldConfig:
        return self._world.model_copy(update={"film_scale": scale})

    def lessons(self, images: FsqTokenizer, tokens: Tokens, progress: Progress) -> Lessons:
        """Captions, questions, drawings and videos, drawn anew for every step."""
        sizes, seed = self._sizes, self._cfg.seed
        self._corpus = build_corpus(
            self._filmed(sizes.corpus_film_scale),
            images,
            num_doubles=sizes.num_doubles,
            num_episodes=sizes.num_episodes,
            episode_length=sizes.episode_length,
            seed=seed,
            progress=progress,
        )
        tasks = BaseTasks(self._corpus, tokens)

        def batches(start: int) -> Iterator[dict[str, Rows]]:
            return islice(tasks.batches(sizes.rows_per_task, seed), start, None)

        return Lessons(batches, heldout=())

    def save(self, folder: Path) -> None:
        """Write the transitions that the videos showed: no split may show them again."""
        assert self._corpus is not None
        np.save(folder / SEEN_FILE, self._corpus.seen)
