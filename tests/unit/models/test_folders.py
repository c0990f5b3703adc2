"""Folders that are not what a family needs, and folders in half precision."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    ChameleonForConditionalGeneration,
    ChameleonVQVAEConfig,
    GemmaConfig,
    GemmaForCausalLM,
    JanusForConditionalGeneration,
)

from dynamics.core.errors import UserError
from dynamics.inference.decode import DynamicCacheDecoder
from dynamics.inference.fdp import ForwardDynamics
from dynamics.inference.idm import InverseDynamics
from dynamics.inference.sampling import SamplingParams
from dynamics.models import load_image_tokenizer, load_model
from dynamics.models.convert_vqgan import convert_vqgan
from dynamics.models.image_tokenizers.fsq import to_pixels
from dynamics.training.loss import RowLoss
from dynamics.training.objectives import objective
from tests.contracts.checkpoints import (
    CASES,
    LANGUAGE,
    NUM_CODES,
    VQ_SIZES,
    build_anole,
    build_chameleon,
    build_janus,
    build_liquid,
    random_vqgan,
    save_ckpt,
)


def refused(family: str, base: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_model(family, base)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("family", "build"), [("chameleon", build_chameleon), ("liquid", build_liquid)]
)
def test_a_folder_without_a_decoder_says_how_to_get_one(
    tmp_path: Path, family: str, build: Callable[[Path], None]
) -> None:
    build(tmp_path)
    for name in ("vqgan.json", "vqgan.safetensors"):
        (tmp_path / name).unlink()
    assert f"dynamics convert-vqgan vqgan.ckpt {tmp_path}" in refused(family, tmp_path)


def test_the_vqgan_of_another_model_is_refused(tmp_path: Path) -> None:
    build_chameleon(tmp_path)
    torch.manual_seed(7)
    save_ckpt(random_vqgan(), tmp_path / "vqgan.ckpt")
    convert_vqgan(tmp_path / "vqgan.ckpt", tmp_path, ChameleonVQVAEConfig(**VQ_SIZES))
    assert "not the VQGAN of this checkpoint" in refused("chameleon", tmp_path)


def test_a_vqgan_of_other_channels_within_a_checkpoint_is_refused(tmp_path: Path) -> None:
    build_anole(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["vq_config"]["base_channels"] = 64
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "another VQGAN" in refused("chameleon", tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_said(tmp_path: Path) -> None:
    for load in (load_model, load_image_tokenizer):
        with pytest.raises(UserError, match=r"^model.device=cuda, and torch sees no GPU on \S+$"):
            load("liquid", tmp_path, "cuda")


def test_a_plain_gemma_is_no_liquid(tmp_path: Path) -> None:
    build_liquid(tmp_path)
    rows = json.loads((tmp_path / "config.json").read_text())["vocab_size"] - NUM_CODES
    config = GemmaConfig(vocab_size=rows, head_dim=16, **LANGUAGE)
    GemmaForCausalLM(config).save_pretrained(tmp_path)
    assert "plain Gemma" in refused("liquid", tmp_path)


def test_a_tokenizer_without_image_tokens_is_named(tmp_path: Path) -> None:
    build_liquid(tmp_path)
    text = (tmp_path / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(text.replace("<boi>", "<unused0>"))
    assert "has no token <boi>" in refused("liquid", tmp_path)


def test_an_index_that_points_out_of_its_folder_is_refused(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    build_anole(base)
    path = base / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    shutil.copy(base / index["weight_map"]["lm_head.weight"], tmp_path / "out.safetensors")
    names = [name for name in index["weight_map"] if "vqmodel" in name]
    index["weight_map"] |= dict.fromkeys(names, "../out.safetensors")
    path.write_text(json.dumps(index))
    assert "points out of its folder" in refused("chameleon", base)


def test_a_base_that_is_an_adapter_of_another_folder_is_refused(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    build_liquid(base)
    shutil.copytree(base, tmp_path / "other")
    config = {"peft_type": "LORA", "base_model_name_or_path": str(tmp_path / "other")}
    (base / "adapter_config.json").write_text(json.dumps(config))
    assert "its weights are another folder's" in refused("liquid", base)


class Payload:
    """What a pickle of a stranger may hold: loading it writes a file."""

    def __init__(self, ran: Path) -> None:
        self.ran = ran

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.ran,)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model-1.pt", "../model-1.bin"])
def test_an_index_does_not_lead_to_a_pickle(tmp_path: Path, name: str) -> None:
    base = tmp_path / "base"
    base.mkdir()
    build_anole(base)
    torch.save(Payload(tmp_path / "ran"), base / name)
    path = base / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["lm_head.weight"] = name
    path.write_text(json.dumps(index))
    assert name in refused("chameleon", base)
    assert not (tmp_path / "ran").exists()


def test_an_adapter_that_would_run_code_is_refused(tmp_path: Path) -> None:
    build_liquid(tmp_path)
    model = load_model("liquid", tmp_path, "cpu")
    adapter = tmp_path / "adapter"
    with pytest.raises(UserError, match="holds no peft adapter"):
        model.load_adapter("idm", adapter)
    adapter.mkdir()
    config = adapter / "adapter_config.json"
    config.write_text('{"peft_type": "LORA"}')
    for name in ("adapter_model.bin", "adapter_model.pt"):
        torch.save(Payload(tmp_path / "ran"), adapter / name)
    with pytest.raises(UserError, match=r"lacks adapter_model.safetensors; other files \(.bin"):
        model.load_adapter("idm", adapter)
    (adapter / "adapter_model.safetensors").touch()
    for text in (
        '{"peft_type": "PROMPT_TUNING"}',
        "[]",
        '{"peft_type": "LORA", "megatron_config": 1}',
    ):
        config.write_text(text)
        with pytest.raises(UserError, match=r"adapter_config\.json"):
            model.load_adapter("idm", adapter)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("damage", [b"", b"not safetensors"])
def test_damaged_weights_are_one_line(tmp_path: Path, damage: bytes) -> None:
    build_liquid(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(damage)
    assert str(tmp_path) in refused("liquid", tmp_path)


def test_codes_are_those_of_transformers_own_encoder(tmp_path: Path) -> None:
    build_anole(tmp_path)
    frames = np.random.default_rng(0).integers(0, 256, size=(3, 16, 16, 3), dtype=np.uint8)
    model = load_model("chameleon", tmp_path)
    reference = ChameleonForConditionalGeneration.from_pretrained(tmp_path)
    with torch.inference_mode():
        expected = reference.get_image_tokens(to_pixels(frames))
    codes = load_image_tokenizer("chameleon", tmp_path).encode(frames)
    assert len(np.unique(codes)) > 8
    assert (model.tokens.image_ids[torch.from_numpy(codes)] == expected).all()


def test_features_are_what_the_codebook_is_searched_with(tmp_path: Path) -> None:
    build_anole(tmp_path)
    images = load_image_tokenizer("chameleon", tmp_path)
    frames = np.random.default_rng(0).integers(0, 256, size=(2, 16, 16, 3), dtype=np.uint8)
    features = torch.from_numpy(images.encode_with_features(frames)[1])
    network = ChameleonForConditionalGeneration.from_pretrained(tmp_path)
    codebook = network.model.vqmodel.quantize.embedding.weight
    nearest = torch.cdist(features, codebook[None]).argmin(-1)
    assert (nearest.numpy() == images.encode(frames)).all()


def test_janus_codes_are_searched_on_the_unit_sphere(tmp_path: Path) -> None:
    build_janus(tmp_path)
    images = load_image_tokenizer("janus", tmp_path)
    frames = np.random.default_rng(0).integers(0, 256, size=(2, 16, 16, 3), dtype=np.uint8)
    features = torch.from_numpy(images.encode_with_features(frames)[1])
    assert torch.allclose(features.norm(dim=-1), torch.ones(2, 16), atol=1e-5)
    network = JanusForConditionalGeneration.from_pretrained(tmp_path)
    codebook = network.model.vqmodel.quantize.embedding.weight
    nearest = torch.cdist(features, torch.nn.functional.normalize(codebook, dim=-1)[None])
    assert (nearest.argmin(-1).numpy() == images.encode(frames)).all()


def test_text_is_cut_as_tokenizer_json_says_whatever_class_the_folder_names(
    tmp_path: Path,
) -> None:
    build_anole(tmp_path)
    text = "push  the Ring,\n left"
    before = load_model("chameleon", tmp_path).tokens
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config |= {"tokenizer_class": "LlamaTokenizer", "legacy": False, "add_bos_token": True}
    config |= {"image_token": "<image>", "boi_token": "<racm3:break>", "eoi_token": "<eoss>"}
    path.write_text(json.dumps(config))
    after = load_model("chameleon", tmp_path).tokens
    assert after.text_ids(text) == before.text_ids(text)
    assert after.text(after.text_ids(text)) == text
    # Now that they are named as special, they are read as letters instead of an unknown word.
    assert after.text(after.text_ids("<eoss>")) == "<eoss>"


@pytest.mark.parametrize("name", [name for name in CASES if name != "tiny"])
def test_a_checkpoint_in_half_precision_stays_so_and_works(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    case.build(tmp_path)
    model = load_model(case.family, tmp_path)
    model.network.bfloat16().save_pretrained(tmp_path)
    del model
    half = load_model(case.family, tmp_path)
    assert {parameter.dtype for parameter in half.network.parameters()} == {torch.bfloat16}
    frames = half.images.decode(np.zeros((1, half.images.num_tokens), np.int64))
    assert half.images.encode_with_features(frames)[1].dtype == np.float32
    codes = np.arange(half.images.num_tokens)[None] % half.images.num_codes
    action = ["push the ring"]
    sampling = SamplingParams(num_samples=2, temperature=1.0)
    fdp = ForwardDynamics(DynamicCacheDecoder(half, "fdp"), "")
    drawn = fdp.generate(codes, action, sampling, seeds=[0])
    assert np.isfinite(drawn.logprobs).all()
    idm = InverseDynamics(DynamicCacheDecoder(half, "idm"), "")
    assert idm.action_logprobs(codes, codes, action) < 0
    rows = half.tokens.fdp_rows(codes, action, codes)
    assert torch.isfinite(RowLoss(half, objective("nll"))(rows.ids, rows.labels, None, "fdp"))
