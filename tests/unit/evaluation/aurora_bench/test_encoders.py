"""CLIP, DINO and BERTScore from folders that the tests build: random weights, real classes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTModel,
)

from dynamics.core.errors import UserError
from dynamics.evaluation.aurora_bench.dataset import read_benchmark
from dynamics.evaluation.aurora_bench.encoders import (
    BertScorer,
    Clip,
    Dino,
    EncoderFolders,
    Encoders,
    Preprocess,
    load_encoders,
)
from dynamics.evaluation.aurora_bench.score import Scorer

SMALL = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def save_tokenizer(folder: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "move", "the", "red", "cube", "blue", "left"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        eos_token="[SEP]",
    ).save_pretrained(folder)


def save_preprocessor(folder: Path, **changes: object) -> None:
    config = {"size": 32, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, **changes}
    (folder / "preprocessor_config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> EncoderFolders:
    root = tmp_path_factory.mktemp("encoders")
    torch.manual_seed(0)
    text = {**SMALL, "vocab_size": 10, "max_position_embeddings": 8, "eos_token_id": 3}
    vision = {**SMALL, "image_size": 32, "patch_size": 8}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    CLIPModel(config).save_pretrained(root / "clip")
    ViTModel(ViTConfig(**SMALL, image_size=32, patch_size=8)).save_pretrained(root / "dino")
    BertModel(BertConfig(**SMALL, vocab_size=10)).save_pretrained(root / "bert")
    for name in ("clip", "bert"):
        save_tokenizer(root / name)
    for name in ("clip", "dino"):
        save_preprocessor(root / name)
    return EncoderFolders(clip=root / "clip", dino=root / "dino", bert=root / "bert")


def test_the_copys_features_are_its_sources(folders, bench):
    scorer = Scorer(load_encoders(folders))
    rows = scorer.copies(read_benchmark(bench).items).to_pylist()
    for row in rows:
        assert row["nearer_target_clip"] == 0
        assert -1 <= row["clip_t"] <= 1
        assert row["clip_i"] < 1 - 1e-7
        assert row["dino"] < 1 - 1e-7


def test_equal_pictures_have_equal_unit_features(folders):
    picture = Image.effect_noise((50, 70), 80).convert("RGB")
    for encoder in (Clip(folders.clip), Dino(folders.dino)):
        one, other = encoder.pictures([picture, picture.copy()])
        assert float(one @ other) == pytest.approx(1, abs=1e-5)


def test_clip_cuts_what_is_longer_than_it_reads(folders):
    clip = Clip(folders.clip)
    assert clip.text("move the red cube " * 20).shape == clip.text("move").shape


def test_bert_score_of_a_sentence_with_itself_is_one(folders):
    bert = BertScorer(folders.bert)
    assert bert.score("move the red cube", "move the red cube") == pytest.approx(1, abs=1e-5)
    assert bert.score("move the red cube", "left blue") < 1
    assert bert.score("", "move") == 0


def test_absent_encoders_leave_nulls_and_say_what_to_get(bench):
    row = Scorer(Encoders()).copies(read_benchmark(bench).items[:1]).to_pylist()[0]
    assert row["clip_i"] is row["clip_t"] is row["nearer_target_clip"] is row["dino"] is None
    lines = EncoderFolders().missing()
    for line, option in zip(lines, ("--clip DIR", "--dino DIR", "--bert DIR"), strict=True):
        assert line.endswith(option)
        assert "\n" not in line


def test_other_weights_have_another_digest(folders):
    assert len({EncoderFolders().digest(), folders.digest()}) == 2


def test_the_shorter_side_is_scaled_and_the_middle_cut_out(tmp_path):
    save_preprocessor(
        tmp_path,
        size={"shortest_edge": 20},
        crop_size={"width": 20, "height": 20},
        do_center_crop=True,
        image_mean=[0, 0, 0],
        image_std=[1, 1, 1],
    )
    picture = Image.new("RGB", (80, 40), "white")
    picture.paste("black", (0, 0, 20, 40))  # the left quarter, which the crop leaves out
    pixels = Preprocess.load(tmp_path)([picture])
    assert pixels.shape == (1, 3, 20, 20)
    assert float(pixels[..., 2:].min()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: (f / "config.json").unlink(), "no config.json"),
        (lambda f: (f / "model.safetensors").unlink(), "no \\*.safetensors"),
        (lambda f: (f / "preprocessor_config.json").unlink(), "no preprocessor_config.json"),
        (lambda f: (f / "preprocessor_config.json").write_text("[]"), "names no size"),
    ],
)
def test_a_folder_that_lacks_something_is_named(folders, tmp_path, spoil, said):
    for file in folders.dino.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    spoil(tmp_path)
    with pytest.raises(UserError, match=said):
        Dino(tmp_path)


def test_another_kind_of_model_is_refused(folders):
    with pytest.raises(UserError, match="holds a bert model, not clip"):
        Clip(folders.bert)


def test_a_missing_folder_is_named_before_anything_is_computed(tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        EncoderFolders(clip=tmp_path / "nothing").digest()


def test_features_do_not_depend_on_their_neighbours(folders):
    dino = Dino(folders.dino)
    one, other = (Image.effect_noise((40, 40), s).convert("RGB") for s in (10, 90))
    alone = dino.pictures([one])[0]
    np.testing.assert_allclose(dino.pictures([one, other])[0], alone, atol=1e-5)
