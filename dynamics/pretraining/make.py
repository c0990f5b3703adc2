"""A base checkpoint from its beginning: image tokenizer, words, network.

What it is made from is a `Corpus`. Every part is kept in a work folder beside the checkpoint until
that is whole, so that the same command goes on after a kill.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dynamics.core.config import LoopConfig, PretrainConfig
from dynamics.core.errors import UserError
from dynamics.core.progress import Detail, Progress
from dynamics.models.chameleon import chameleon_tokens
from dynamics.models.checkpoint import CONFIG_FILE
from dynamics.models.image_tokenizers.fsq import FsqTokenizer
from dynamics.models.tokens import Prompts, Rows, Tokens
from dynamics.pretraining.base import BaseRecipe, Batches, build_network, heldout_losses, train_base
from dynamics.pretraining.vocabulary import build_tokenizer
from dynamics.storage.files import new_folder, remove_tree
from dynamics.storage.run_folder import read_json, write_json

RECIPE_FILE = "recipe.json"
_PROGRESS_EVERY = 10


@dataclass(frozen=True, slots=True)
class Lessons:
    """What the network learns, and what it is measured on."""

    batches: Batches
    heldout: Sequence[Mapping[str, Rows]]
    """Batches of frames that it never learns; may be empty."""


class Corpus(Protocol):
    """What a base is made from."""

    @property
    def words(self) -> Sequence[str]:
        """Words of the vocabulary."""

    @property
    def prompts(self) -> Prompts:
        """The prompts of the checkpoint."""

    @property
    def about(self) -> Mapping[str, Any]:
        """What decides the checkpoint besides ``pretrain`` and ``seed``, for ``recipe.json``."""

    def tasks(self, num_tokens: int) -> Sequence[str]:
        """Words of the tasks that a frame of so many codes needs."""

    def image_tokenizer(self, progress: Progress) -> tuple[FsqTokenizer, Mapping[str, Any]]:
        """The fitted tokenizer, and what it sees."""

    def lessons(self, images: FsqTokenizer, tokens: Tokens, progress: Progress) -> Lessons:
        """What the network learns."""

    def save(self, folder: Path) -> None:
        """Write further files of the checkpoint."""


def make_base(cfg: LoopConfig, corpus: Corpus, out: Path, progress: Progress) -> dict[str, Any]:
    """Make the checkpoint folder ``out``, or go on with it.

    Returns:
        What was measured on held-out frames; ``recipe.json`` has it, and how the base was made.

    Raises:
        UserError: it was begun with another recipe.
    """
    work = work_folder(out)
    recipe = {"pretrain": cfg.pretrain.model_dump(mode="json"), "seed": cfg.seed, **corpus.about}
    _begin(work, recipe)
    images, seen = _image_tokenizer(corpus, work, progress)
    tokenizer = build_tokenizer(corpus.tasks(images.num_tokens), corpus.words)
    sizes = base_recipe(cfg.pretrain, cfg.seed)
    network: Any = build_network(sizes, tokenizer, images.num_codes)
    tokens = chameleon_tokens(
        tokenizer, network.config.vocabulary_map, corpus.prompts, images.num_tokens
    )
    lessons = corpus.lessons(images, tokens, progress)
    for step, losses in train_base(network, lessons.batches, sizes, work / "base"):
        if step % _PROGRESS_EVERY == 0 or step == sizes.steps:
            progress(step, sizes.steps, "base", Detail(losses=losses))
    network.eval()
    measured = {
        "image_tokenizer": seen,
        "heldout_losses": heldout_losses(network, lessons.heldout),
    }
    with new_folder(out, last=CONFIG_FILE) as folder:
        write_checkpoint(folder, network, tokenizer, images, corpus.prompts)
        corpus.save(folder)
        (folder / RECIPE_FILE).write_text(json.dumps(recipe | measured, indent=2) + "\n")
    remove_tree(work)
    return measured


def work_folder(out: Path) -> Path:
    """The folder beside a checkpoint that keeps what is done of it until it is whole."""
    return out.with_name(f".{out.name}.making")


def write_checkpoint(
    folder: Path, network: Any, tokenizer: Any, images: FsqTokenizer, prompts: Prompts
) -> None:
    """Write everything that `dynamics.models.load_model` needs."""
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    images.save(folder)
    prompts.save(folder)


def base_recipe(chosen: PretrainConfig, seed: int) -> BaseRecipe:
    """The network's sizes and lengths of a config."""
    names = ("width", "layers", "heads", "feed_forward", "steps")
    return BaseRecipe(seed=seed, **{name: getattr(chosen, name) for name in names})


def _begin(work: Path, recipe: Mapping[str, Any]) -> None:
    """Note the recipe in the work folder; refuse to go on with another one."""
    work.mkdir(parents=True, exist_ok=True)
    path = work / RECIPE_FILE
    if not path.exists():
        write_json(path, dict(recipe))
    elif (begun := read_json(path)) != json.loads(json.dumps(recipe)):
        changed = ", ".join(sorted(key for key in recipe if begun.get(key) != recipe[key]))
        raise UserError(
            f"{work} was begun with another recipe ({changed}); remove it to begin anew, or set "
            "that as it was"
        )


def _image_tokenizer(
    corpus: Corpus, work: Path, progress: Progress
) -> tuple[FsqTokenizer, dict[str, Any]]:
    """The corpus' image tokenizer, fitted once."""
    folder, seen = work / "image_tokenizer", "seen.json"
    if not folder.exists():
        images, found = corpus.image_tokenizer(progress)
        with new_folder(folder, last=seen) as fresh:
            images.save(fresh)
            (fresh / seen).write_text(json.dumps(dict(found)))
    return FsqTokenizer.load(folder), json.loads((folder / seen).read_text())
