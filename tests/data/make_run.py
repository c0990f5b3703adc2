"""The run folder that later versions must still read, made by this one:

.venv/bin/python -m tests.data.make_run tests/data/run-2

Each version of run.json has such a folder, named after its ``format``; tests/unit/pipeline/
test_older_runs.py reads them all. OUT, relative to the repository so that no file names this
machine, is replaced: ``OUT/base``, an untrained checkpoint, and ``OUT/run``, rounds 0 and 1 of a
run on it, without the videos, which nothing reads once they are tables.
"""

import shutil
import sys
from pathlib import Path

import torch
from transformers import ChameleonForConditionalGeneration

from dynamics.core.config import REPOSITORY_ROOT, WorldConfig
from dynamics.core.config_file import load
from dynamics.models.image_tokenizers.fsq import FsqAutoencoder, FsqConfig, FsqTokenizer
from dynamics.pretraining.base import BaseRecipe, build_network
from dynamics.pretraining.make import write_checkpoint
from dynamics.pretraining.vocabulary import prompts
from tests.bases import text_tokenizer
from tests.runs import run_local

SMALL = [
    "labelled={num_pairs: 20, num_heldout: 6}",
    "pool.num_pairs=20",
    "label={batch_size: 8, shard_rows: 24}",
    "train.first_steps=150",
    "train.round_steps=150",
    "train.checkpoint_every=50",
    "train.learning_rate=0.02",
    "train.lora.r=1",
    "evaluate.num_best_of_items=2",
    "serve.enabled=false",
]


def make_base(out: Path) -> None:
    torch.manual_seed(0)
    world = WorldConfig(grid=3, min_objects=2, max_objects=3)
    recipe = BaseRecipe(width=8, layers=1, heads=1, feed_forward=16)
    sizes = FsqConfig(frame_px=world.frame_px, width=4, levels=(2, 2, 2))
    images = FsqTokenizer(FsqAutoencoder(sizes))
    tokenizer = text_tokenizer(world)
    config = build_network(recipe, tokenizer, images.num_codes).config
    # Chameleon's own VQGAN is never run and would be most of the bytes: none of its channels.
    config.vq_config.base_channels = 0
    network = ChameleonForConditionalGeneration(config)
    write_checkpoint(out, network, tokenizer, images, prompts(()))


def make_run(out: Path) -> None:
    root = REPOSITORY_ROOT / out
    shutil.rmtree(root, ignore_errors=True)
    make_base(root / "base")
    cfg = load(REPOSITORY_ROOT / "tests" / "test-3x3.yaml", [f"model.base={out / 'base'}", *SMALL])
    run_local(cfg, root / "run")
    for videos in ("labelled", "pool", "heldout"):
        shutil.rmtree(root / "run" / "data" / videos)
    for picture in (root / "run").glob("rounds/*/grid.png"):
        picture.unlink()
    for rest in (".lock", "report.html"):
        (root / "run" / rest).unlink()


if __name__ == "__main__":
    make_run(Path(sys.argv[1]))
