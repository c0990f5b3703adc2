"""What a config names is looked for before anything starts."""

from dynamics.core.config import REPOSITORY_ROOT
from dynamics.core.config_file import load
from dynamics.plan.pieces import pieces


def test_every_missing_piece_of_the_papers_recipe_is_named_with_its_place():
    cfg = load(REPOSITORY_ROOT / "configs" / "liquid7b.yaml")
    found = {piece.key: piece.line() for piece in pieces(cfg) if not piece.is_there}
    assert list(found) == [
        "model.base",
        "pool.path",
        "pool.more[0].path",
        "pool.more[1].path",
        "labelled.path",
        "labelled.heldout_path",
    ]
    assert all("is missing, from http" in line for line in found.values())
