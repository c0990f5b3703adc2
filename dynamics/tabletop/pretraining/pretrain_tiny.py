"""Make the tiny base checkpoint: a small Chameleon that knows pictures and words, not actions.

``dynamics pretrain-tiny OUT`` runs this. The result has the Hugging Face layout, and every user
starts from the one that the repository ships, as with the 7B weights.

B rows, T positions, L codes a frame.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from dynamics.core.config import WorldConfig
from dynamics.core.progress import Detail, Progress, silent
from dynamics.core.seeds import numpy_rng
from dynamics.models.chameleon import chameleon_tokens
from dynamics.models.image_tokenizers.fsq import FsqTokenizer
from dynamics.models.tokens import IGNORE, Prompts, Rows, Tokens
from dynamics.pretraining.base import BaseRecipe, build_network, train_base
from dynamics.tabletop.language import action_words
from dynamics.tabletop.pretraining.base_corpus import (
    Corpus,
    ask_about_one,
    ask_about_two,
    base_words,
    build_corpus,
    caption,
)
from dynamics.tabletop.pretraining.fit_image_tokenizer import fit_image_tokenizer, read_back
from dynamics.tabletop.seen import SEEN_FILE

SPECIALS = ("<pad>", "<bos>", "<eos>", "<unk>", "<racm3:break>", "<eoss>", "<image>")
TASK_WORDS = ("[caption]", "[question]", "[compare]", "[draw]", "[video]", "[predict]", "[explain]")
PROMPTS = Prompts(version="tiny-1", fdp="[predict]", idm="[explain]", action_tokens=10)
TEXT_TOKENS = 40
"""Room for several questions with their answers after the pictures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyRecipe(BaseRecipe):
    """Sizes and lengths; saved with the checkpoint as ``recipe.json``."""

    tokenizer_steps: int = 4000
    tokenizer_film_scale: int = 3
    """Photographs are taken this many times larger than the model's frames, and scaled down."""
    corpus_film_scale: int = 2
    num_doubles: int = 30_000
    num_episodes: int = 8_000
    episode_length: int = 6
    rows_per_task: tuple[int, int, int, int, int] = (4, 14, 50, 14, 32)
    """caption, question, compare, draw, video."""


def build_tokenizer(grid: int) -> PreTrainedTokenizerFast:
    """A word-level tokenizer over captions, questions and action sentences."""
    words = sorted({*base_words(grid), *action_words()})
    vocabulary = {token: index for index, token in enumerate((*SPECIALS, *TASK_WORDS, *words))}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=["<racm3:break>", "<eoss>", "<image>"],
    )


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
            [tokens.bos, *self._text("[video]")] + [tokens.pad] * PROMPTS.action_tokens
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

    def batches(self, recipe: TinyRecipe) -> Iterator[dict[str, Rows]]:
        """Endless steps, one batch a task each."""
        rng = numpy_rng(recipe.seed, "base-batches")
        singles, videos = len(self.corpus.first), len(self.corpus.video_source_codes)
        c, q, m, d, v = recipe.rows_per_task
        while True:
            yield {
                "caption": self.captions(rng.integers(singles, size=c)),
                "question": self.questions(rng.integers(singles, size=q), rng),
                "compare": self.comparisons(rng.integers(singles, size=m), rng),
                "draw": self.drawings(rng.integers(singles, size=d)),
                "video": self.videos(rng.integers(videos, size=v)),
            }


def pretrain_tiny(
    world: WorldConfig, recipe: TinyRecipe, out: Path, *, progress: Progress = silent
) -> Path:
    """Train tokenizer and base, save the checkpoint into ``out``; returns ``out``.

    A snapshot is saved every tenth of the way, so that a stopped run leaves something usable.
    """
    out.mkdir(parents=True, exist_ok=True)
    images = fit_image_tokenizer(
        world.model_copy(update={"film_scale": recipe.tokenizer_film_scale}),
        steps=recipe.tokenizer_steps,
        seed=recipe.seed,
        progress=progress,
    )
    corpus = build_corpus(
        world.model_copy(update={"film_scale": recipe.corpus_film_scale}),
        images,
        num_doubles=recipe.num_doubles,
        num_episodes=recipe.num_episodes,
        episode_length=recipe.episode_length,
        seed=recipe.seed,
        progress=progress,
    )
    np.save(out / SEEN_FILE, corpus.seen)
    tokenizer = build_tokenizer(world.grid)
    network: Any = build_network(recipe, tokenizer, images.num_codes)
    tokens = chameleon_tokens(tokenizer, network.config.vocabulary_map, PROMPTS, images.num_tokens)
    tasks = BaseTasks(corpus, tokens)

    def batches(start: int) -> Iterator[dict[str, Rows]]:
        return islice(tasks.batches(recipe), start, None)

    for step, losses in train_base(network, batches, recipe):
        if step % 25 == 0:
            progress(step, recipe.steps, "base", Detail(losses=losses))
        if step % max(1, recipe.steps // 10) == 0:
            save_checkpoint(out, network, tokenizer, images, world, recipe)
    return out


def save_checkpoint(
    out: Path,
    network: Any,
    tokenizer: Any,
    images: FsqTokenizer,
    world: WorldConfig,
    recipe: TinyRecipe,
) -> None:
    """Everything that `dynamics.models.load_model` needs, plus how it was made."""
    network.save_pretrained(out)
    tokenizer.save_pretrained(out)
    images.save(out)
    PROMPTS.save(out)
    made = {
        "world": world.model_dump(),
        "recipe": asdict(recipe),
        "image_tokenizer": read_back(images, world, num=1000, seed=recipe.seed + 1),
    }
    (out / "recipe.json").write_text(json.dumps(made, indent=2) + "\n")
