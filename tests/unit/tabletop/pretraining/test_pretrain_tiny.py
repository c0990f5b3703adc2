import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dynamics.core.config import REPOSITORY_ROOT, WorldConfig
from dynamics.models import load_model
from dynamics.tabletop.language import action_only_words
from dynamics.tabletop.pretraining.pretrain_tiny import TinyRecipe, pretrain_tiny
from dynamics.tabletop.seen import seen_transitions

WORLD = WorldConfig(grid=3, min_objects=2, max_objects=3)
RECIPE = TinyRecipe(
    width=32, layers=1, heads=2, feed_forward=64, tokenizer_steps=5, num_doubles=30,
    num_episodes=5, episode_length=3, steps=10, rows_per_task=(2, 2, 2, 2, 2),
)  # fmt: skip


@pytest.mark.slow
def test_a_small_recipe_gives_a_checkpoint_that_loads_and_says_how_it_was_made(
    tmp_path: Path,
) -> None:
    seen: list[str] = []
    base = pretrain_tiny(
        WORLD, RECIPE, tmp_path / "base", progress=lambda done, total, what: seen.append(what)
    )
    model = load_model("chameleon", base)
    assert model.tokens.num_image_tokens == model.images.num_tokens == 9
    assert {"pictures", "videos"} <= set(seen)
    assert len(seen_transitions(base)) == 15
    assert json.loads((base / "recipe.json").read_text())["recipe"]["steps"] == 10
    assert {path.suffix for path in base.iterdir()} == {".json", ".safetensors", ".npy"}


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
