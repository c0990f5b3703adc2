import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import ChameleonForConditionalGeneration

from dynamics.core.errors import UserError
from dynamics.models import FAMILIES, load_image_tokenizer, load_model
from dynamics.models.image_tokenizer import ImageTokenizer


def test_hidden_states_equal_those_of_transformers_own_forward(untrained_base: Path) -> None:
    model = load_model("chameleon", untrained_base)
    reference = ChameleonForConditionalGeneration.from_pretrained(untrained_base)
    ids = torch.arange(20).reshape(2, 10)
    with torch.inference_mode():
        ours = model.logits(model.hidden(ids))
        theirs = reference(input_ids=ids).logits
    image = model.image_ids
    text = torch.ones(ours.shape[-1], dtype=torch.bool).index_fill(0, image, False)
    assert torch.allclose(ours[..., text], theirs[..., text], atol=1e-5)
    # Why forward is not used: it leaves no image token possible.
    assert (theirs[..., image] == torch.finfo(theirs.dtype).min).all()
    assert torch.isfinite(ours[..., image]).all()


def test_image_logits_are_the_image_rows_of_all_logits(untrained_base: Path) -> None:
    model = load_model("chameleon", untrained_base)
    with torch.inference_mode():
        hidden = model.hidden(torch.arange(8)[None])
        assert torch.allclose(
            model.image_logits(hidden), model.logits(hidden)[..., model.image_ids], atol=1e-6
        )


def test_the_image_tokenizer_fits_the_protocol_and_its_codes_round_trip(
    untrained_base: Path,
) -> None:
    images = load_image_tokenizer("chameleon", untrained_base)
    assert isinstance(images, ImageTokenizer)
    codes = np.random.default_rng(0).integers(0, images.num_codes, size=(4, images.num_tokens))
    assert images.decode(codes).shape == (4, images.frame_px, images.frame_px, 3)
    again = images.encode(images.decode(codes))
    assert again.min() >= 0
    assert again.max() < images.num_codes
    latents = images.model.latents(torch.from_numpy(codes))  # type: ignore[attr-defined]
    assert (images.model.codes(latents).numpy() == codes).all()  # type: ignore[attr-defined]


def test_batch_size_does_not_change_codes(untrained_base: Path) -> None:
    images = load_image_tokenizer("chameleon", untrained_base)
    frames = np.random.default_rng(0).integers(0, 256, size=(5, 24, 24, 3), dtype=np.uint8)
    alone = np.concatenate([images.encode(frame[None]) for frame in frames])
    assert (images.encode(frames) == alone).all()


def test_frames_of_another_size_are_refused(untrained_base: Path) -> None:
    images = load_image_tokenizer("chameleon", untrained_base)
    with pytest.raises(ValueError, match="uint8"):
        images.encode(np.zeros((1, 32, 32, 3), np.uint8))


def test_a_folder_without_a_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=str(tmp_path)):
        load_model("chameleon", tmp_path)


def test_an_unknown_family_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=", ".join(FAMILIES)):
        load_model("gpt", Path())


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize("damage", ["pointer", "half", "other"])
def test_a_damaged_file_of_a_checkpoint_is_one_line(
    untrained_base: Path, tmp_path: Path, damage: str
) -> None:
    base = shutil.copytree(untrained_base, tmp_path / "base")
    read = [path for path in base.iterdir() if path.suffix in (".json", ".safetensors")]
    for path in sorted(read):
        if path.name in ("recipe.json", "generation_config.json"):
            continue  # for people
        payload = path.read_bytes()
        path.write_bytes(
            {"pointer": POINTER, "half": payload[: len(payload) // 2], "other": b"[1]"}[damage]
        )
        with pytest.raises(UserError, match=str(base)) as raised:
            load_model("chameleon", base, "cpu")
        assert "\n" not in str(raised.value)
        assert damage != "pointer" or f"{path.name} is a pointer" in str(raised.value)
        path.write_bytes(payload)
