import json
import os
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import ChameleonVQVAEConfig
from typer.testing import CliRunner

from dynamics.cli.main import app
from dynamics.core.errors import UserError
from dynamics.models.convert_vqgan import CHAMELEON_VQGAN, convert_vqgan
from dynamics.models.image_tokenizers.vqgan import Vqgan, load_vqgan, vqgan_tokenizer
from tests.contracts.checkpoints import VQ_SIZES, random_vqgan, save_ckpt

TINY = ChameleonVQVAEConfig(**VQ_SIZES)


@pytest.fixture
def model() -> Vqgan:
    torch.manual_seed(0)
    return random_vqgan()


def test_a_converted_vqgan_draws_what_the_original_drew(model: Vqgan, tmp_path: Path) -> None:
    save_ckpt(model, tmp_path / "vqgan.ckpt")
    num = convert_vqgan(tmp_path / "vqgan.ckpt", tmp_path / "out", TINY)
    assert num == len(model.state_dict())
    loaded = load_vqgan(tmp_path / "out")
    assert loaded is not None
    images, original = (vqgan_tokenizer(m, "cpu") for m in (loaded, model))
    frames = np.random.default_rng(0).integers(0, 256, size=(3, 16, 16, 3), dtype=np.uint8)
    codes = images.encode(frames)
    assert len(np.unique(codes)) > 8
    assert (codes == original.encode(frames)).all()
    assert (images.decode(codes) == original.decode(codes)).all()


def test_conversion_writes_the_same_bytes_again(model: Vqgan, tmp_path: Path) -> None:
    save_ckpt(model, tmp_path / "vqgan.ckpt")
    written = []
    for name in ("a", "b"):
        convert_vqgan(tmp_path / "vqgan.ckpt", tmp_path / name, TINY)
        written.append({f.name: f.read_bytes() for f in (tmp_path / name).iterdir()})
    assert written[0] == written[1]
    assert set(written[0]) == {"vqgan.json", "vqgan.safetensors"}


def test_weights_of_the_training_loss_are_left_out(model: Vqgan, tmp_path: Path) -> None:
    state = OrderedDict(model.state_dict())
    state["loss.discriminator.main.0.weight"] = torch.zeros(3)
    torch.save({"state_dict": state}, tmp_path / "vqgan.ckpt")
    convert_vqgan(tmp_path / "vqgan.ckpt", tmp_path, TINY)
    assert set(load_file(tmp_path / "vqgan.safetensors")) == set(model.state_dict())


def test_files_of_the_time_before_zip_and_half_precision_are_read(
    model: Vqgan, tmp_path: Path
) -> None:
    ckpt = tmp_path / "vqgan.ckpt"
    state = {name: tensor.half() for name, tensor in model.state_dict().items()}
    torch.save({"state_dict": state}, ckpt, _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(ckpt)
    convert_vqgan(ckpt, tmp_path, TINY)
    assert {t.dtype for t in load_file(tmp_path / "vqgan.safetensors").values()} == {torch.float32}


class Hostile:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


def test_a_file_that_would_run_code_is_refused_and_runs_none(tmp_path: Path) -> None:
    ckpt, target = tmp_path / "vqgan.ckpt", tmp_path / "made"
    torch.save({"state_dict": {}, "callbacks": Hostile(target)}, ckpt)
    with pytest.raises(UserError, match=r"vqgan\.ckpt is refused: .* posix\.mkdir") as caught:
        convert_vqgan(ckpt, tmp_path / "out", TINY)
    assert "\n" not in str(caught.value)
    assert not target.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        ({"num_embeddings": 32}, "quantize.embedding.weight is 32 x 8, expected 64 x 8"),
        ({"embed_dim": 4}, "quantize.embedding.weight is 64 x 4, expected 64 x 8"),
        ({"base_channels": 64}, "expected"),
        ({"num_res_blocks": 2}, "unknown decoder.up.0.block.2"),
        ({"channel_multiplier": [1, 2]}, "expected"),
    ],
)
def test_another_vqgan_is_refused_with_the_first_difference(
    tmp_path: Path, sizes: dict[str, Any], told: str
) -> None:
    ckpt = tmp_path / "vqgan.ckpt"
    save_ckpt(Vqgan(ChameleonVQVAEConfig(**VQ_SIZES | sizes)), ckpt)
    with pytest.raises(UserError, match=r"vqgan\.ckpt is another VQGAN") as caught:
        convert_vqgan(ckpt, tmp_path / "out", TINY)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_missing_weight_is_named(model: Vqgan, tmp_path: Path) -> None:
    state = model.state_dict()
    del state["decoder.conv_in.weight"]
    torch.save({"state_dict": state}, tmp_path / "vqgan.ckpt")
    with pytest.raises(UserError, match=r"lacks decoder\.conv_in\.weight and 0 more"):
        convert_vqgan(tmp_path / "vqgan.ckpt", tmp_path, TINY)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "no torch checkpoint"),
        (b"no pickle", "no torch checkpoint"),
        (b"text\n", "no torch checkpoint"),  # its "t" closes a tuple that was never opened
        (b"a\n", "no torch checkpoint"),
        (None, "does not exist"),
    ],
)
def test_what_is_no_checkpoint_is_one_line(
    tmp_path: Path, content: bytes | None, told: str
) -> None:
    ckpt = tmp_path / "vqgan.ckpt"
    if content is not None:
        ckpt.write_bytes(content)
    with pytest.raises(UserError, match=told) as caught:
        convert_vqgan(ckpt, tmp_path, TINY)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [{"model": {}}, {"state_dict": {"a": 1}}, [1, 2]])
def test_a_checkpoint_of_something_else_is_one_line(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "vqgan.ckpt")
    with pytest.raises(UserError, match="no state_dict"):
        convert_vqgan(tmp_path / "vqgan.ckpt", tmp_path, TINY)


def test_damaged_or_foreign_converted_files_are_one_line(model: Vqgan, tmp_path: Path) -> None:
    save_ckpt(model, tmp_path / "vqgan.ckpt")
    convert_vqgan(tmp_path / "vqgan.ckpt", tmp_path, TINY)
    sizes = json.loads((tmp_path / "vqgan.json").read_text())
    (tmp_path / "vqgan.json").write_text(json.dumps(sizes | {"base_channels": 64}))
    with pytest.raises(UserError, match="another VQGAN"):
        load_vqgan(tmp_path)
    (tmp_path / "vqgan.json").write_text(json.dumps({"base_channels": 64}))
    with pytest.raises(UserError, match="exactly the fields"):
        load_vqgan(tmp_path)
    (tmp_path / "vqgan.json").write_text(json.dumps(sizes))
    (tmp_path / "vqgan.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match="cannot be read"):
        load_vqgan(tmp_path)


def test_the_command_asks_for_the_published_sizes(model: Vqgan, tmp_path: Path) -> None:
    save_ckpt(model, tmp_path / "vqgan.ckpt")
    command = ["convert-vqgan", str(tmp_path / "vqgan.ckpt"), str(tmp_path / "out")]
    done = CliRunner().invoke(app, command)
    assert isinstance(done.exception, UserError)
    assert "is 64 x 8, expected 8192 x 256" in str(done.exception)
    assert CHAMELEON_VQGAN.resolution == 512
