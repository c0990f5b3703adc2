"""What a config names is looked for before anything starts."""

from dynamics.core.config import REPOSITORY_ROOT
from dynamics.core.config_file import load
from dynamics.plan.pieces import pieces


def test_every_missing_piece_of_the_papers_recipe_is_named_with_its_place():
    cfg = load(REPOSITORY_ROOT / "configs" / "liquid7b.yaml")
    found = {piece.key: piece.line() for piece in pieces(cfg) if not piece.is_there}
    assert list(found) == [
        "model.base",
        "its image decoder",
        "pool.path",
        "pool.more[0].path",
        "pool.more[1].path",
        "labelled.path",
        "labelled.heldout_path",
    ]
    assert all("is missing, from http" in line for line in found.values())


def test_a_base_without_a_decoder_lacks_one_with_a_converted_vqgan_it_does_not(tmp_path):
    tabletop = REPOSITORY_ROOT / "configs" / "tabletop.yaml"
    cfg = load(tabletop, [f"model.base={tmp_path}", "pool.path=null"])
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"model.vqmodel.encoder.conv_in.weight": "a.safetensors"}}')
    (line,) = [piece.line() for piece in pieces(cfg) if not piece.is_there]
    assert "vqgan.json is missing, from https://huggingface.co/spaces" in line
    (tmp_path / "vqgan.json").write_text("{}")
    assert all(piece.is_there for piece in pieces(cfg))
    index.write_text('{"weight_map": {"model.vqmodel.decoder.conv_in.weight": "a.safetensors"}}')
    assert "its image decoder" not in [piece.key for piece in pieces(cfg)]
