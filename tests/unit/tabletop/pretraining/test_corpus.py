import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dynamics.core.config import REPOSITORY_ROOT, LoopConfig, PretrainConfig, WorldConfig
from dynamics.core.progress import silent
from dynamics.models import load_model
from dynamics.pretraining.make import make_base
from dynamics.storage.files import damaged_files
from dynamics.tabletop.language import action_only_words
from dynamics.tabletop.pretraining.corpus import CorpusSizes, TabletopCorpus
from dynamics.tabletop.seen import seen_transitions

SIZES = CorpusSizes(
    num_tables=30, num_doubles=30, num_episodes=5, episode_length=3, rows_per_task=(2, 2, 2, 2, 2)
)


@pytest.mark.slow
def test_a_small_recipe_gives_a_checkpoint_that_loads_and_says_how_it_was_made(
    tmp_path: Path,
) -> None:
    seen: list[str] = []
    cfg = LoopConfig(
        world=WorldConfig(grid=3, min_objects=2, max_objects=3),
        pretrain=PretrainConfig(
            width=32, layers=1, heads=2, feed_forward=64, tokenizer_steps=5, steps=10
        ),
    )
    base = tmp_path / "base"
    corpus = TabletopCorpus(cfg, tmp_path, silent, SIZES)
    make_base(cfg, corpus, base, lambda done, total, what, *_: seen.append(what))
    model = load_model("chameleon", base)
    assert model.tokens.num_image_tokens == model.images.num_tokens == 9
    assert {"image tokenizer", "pictures", "videos", "base"} <= set(seen)
    assert len(seen_transitions(base)) == 15
    assert json.loads((base / "recipe.json").read_text())["pretrain"]["steps"] == 10
    assert not damaged_files(base)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_rows_of_words_that_the_base_never_meets_stay_at_their_initialisation() -> None:
    """The shipped checkpoint has not learnt one verb: its rows only decay."""
    base = REPOSITORY_ROOT / "dynamics" / "assets" / "tiny-4x4"
    model = load_model("chameleon", base)
    embedding = model.network.model.embed_tokens.weight.detach()
    verbs = [model.tokens.text_ids(word)[0] for word in action_only_words()]
    met = [model.tokens.text_ids(word)[0] for word in ("red", "ring", "left", "nothing", "a1")]
    assert len(set(verbs)) == len(verbs)
    untouched, learnt = embedding[verbs].std(), embedding[met].std()
    assert torch.isclose(untouched, torch.tensor(0.02), rtol=0.1)
    assert learnt > 2 * untouched
    assert np.isfinite(float(learnt))
