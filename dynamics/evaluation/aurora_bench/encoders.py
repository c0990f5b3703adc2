"""CLIP, DINO and BERTScore from local folders; nothing is ever downloaded.

B pictures, D feature width, T tokens.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import AutoConfig, AutoModel, AutoTokenizer

from dynamics.core.errors import UserError
from dynamics.core.records import stable_hash
from dynamics.models.checkpoint import check_index
from dynamics.storage.files import checkpoint_digest

Features = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderFolders:
    """Folders of the optional encoders; None leaves their metrics out."""

    clip: Path | None = None
    dino: Path | None = None
    bert: Path | None = None

    def missing(self) -> list[str]:
        """One line per encoder that is not there: what is left out, what to get, where to put it.

        The checkpoints are those of MagicBrush's evaluation, which AURORA and the paper follow.
        """
        told = (
            (self.clip, "CLIP-I, CLIP-T and nearer target (CLIP)", "clip", _CLIP),
            (self.dino, "DINO", "dino", _DINO),
            (self.bert, "BERTScore", "bert", _BERT),
        )
        return [
            f"{what} left out: put {name} into a folder and name it with --{option} DIR"
            for folder, what, option, name in told
            if folder is None
        ]

    def digest(self) -> str:
        """Over the weights of all that are there: part of every score's key.

        Raises:
            UserError: a folder does not exist.
        """
        there = (self.clip, self.dino, self.bert)
        for folder in there:
            if folder is not None and not folder.is_dir():
                raise UserError(f"{folder} is not a folder; put the encoder's checkpoint there")
        return stable_hash(*(checkpoint_digest(folder) if folder else "" for folder in there))


_CLIP = "openai/clip-vit-base-patch32 (config, safetensors, tokenizer, preprocessor_config.json)"
_DINO = "facebook/dino-vits16 (config, safetensors, preprocessor_config.json)"
_BERT = "FacebookAI/roberta-large (config, safetensors, tokenizer)"


class Clip:
    """A CLIP model: one space for pictures and texts."""

    def __init__(self, folder: Path) -> None:
        self._model = _load(folder, {"clip"}, "--clip")
        self._tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        self._preprocess = Preprocess.load(folder)
        self._max_tokens = int(self._model.config.text_config.max_position_embeddings)

    @torch.inference_mode()
    def pictures(self, pictures: Sequence[Image.Image]) -> Features:
        """Unit features, float32 [B, D]."""
        output = self._model.get_image_features(pixel_values=self._preprocess(pictures))
        return _unit(output.pooler_output)

    @torch.inference_mode()
    def text(self, text: str) -> Features:
        """Unit feature, float32 [D]; what is longer than the model reads is cut."""
        ids = self._tokenizer(
            text, truncation=True, max_length=self._max_tokens, return_tensors="pt"
        )
        output = self._model.get_text_features(
            input_ids=ids["input_ids"], attention_mask=ids["attention_mask"]
        )
        feature: Features = _unit(output.pooler_output)[0]
        return feature


class Dino:
    """A self-supervised vision transformer; its class token is the feature."""

    def __init__(self, folder: Path) -> None:
        self._model = _load(folder, {"vit", "dinov2", "dinov2_with_registers"}, "--dino")
        self._preprocess = Preprocess.load(folder)

    @torch.inference_mode()
    def pictures(self, pictures: Sequence[Image.Image]) -> Features:
        """Unit features, float32 [B, D]."""
        output = self._model(pixel_values=self._preprocess(pictures))
        return _unit(output.last_hidden_state[:, 0])


class BertScorer:
    """BERTScore F1 (arXiv:1904.09675) over the last layer, no idf weights, no baseline rescaling.

    The paper's figures are rescaled and of one fixed layer: they are not comparable with these.
    """

    def __init__(self, folder: Path) -> None:
        self._model = _load(folder, {"bert", "roberta", "distilbert", "deberta-v2"}, "--bert")
        self._tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )

    def score(self, said: str, reference: str) -> float:
        """F1 of greedy token matches; 0 for an empty sentence."""
        one_TD, other_TD = self._tokens(said), self._tokens(reference)
        if not len(one_TD) or not len(other_TD):
            return 0.0
        similar = one_TD @ other_TD.T
        precision, recall = float(similar.max(axis=1).mean()), float(similar.max(axis=0).mean())
        total = precision + recall
        return 2 * precision * recall / total if total > 0 else 0.0

    @torch.inference_mode()
    def _tokens(self, text: str) -> Features:
        """Unit features of the words' tokens, the special ones left out, [T, D]."""
        ids = self._tokenizer(
            text, truncation=True, max_length=512, return_special_tokens_mask=True
        )
        words = torch.tensor(ids["special_tokens_mask"]) == 0
        rows = torch.tensor([ids["input_ids"]])
        hidden = self._model(input_ids=rows).last_hidden_state[0]
        return _unit(hidden[words])


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoders:
    """The encoders that are there."""

    clip: Clip | None = None
    dino: Dino | None = None
    bert: BertScorer | None = None


def load_encoders(folders: EncoderFolders) -> Encoders:
    """Load what is named.

    Raises:
        UserError: a folder is missing something or holds another kind of model.
    """
    return Encoders(
        clip=Clip(folders.clip) if folders.clip else None,
        dino=Dino(folders.dino) if folders.dino else None,
        bert=BertScorer(folders.bert) if folders.bert else None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocess:
    """Pictures to pixels [B, 3, H, W], as the checkpoint's preprocessor_config.json says.

    Read by hand: transformers' own image processors want torchvision.
    """

    shortest_edge: int | None
    """Scale the shorter side to this; None scales both sides to ``size``."""
    size: tuple[int, int]
    """Width and height of what the model sees."""
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def load(cls, folder: Path) -> "Preprocess":
        """Read it from a checkpoint folder.

        Raises:
            UserError: it is missing or says something else.
        """
        path = folder / "preprocessor_config.json"
        if not path.is_file():
            raise UserError(f"{folder} has no {path.name}; copy it from the checkpoint's page")
        try:
            raw = json.loads(path.read_text())
            size, crop = raw["size"], raw.get("crop_size")
            crops = bool(raw.get("do_center_crop")) and crop is not None
            edge = size if isinstance(size, int) and crops else None
            if isinstance(size, dict) and "shortest_edge" in size:
                edge = int(size["shortest_edge"])
            return cls(
                shortest_edge=edge,
                size=_sides(crop if crops or edge else size),
                mean=tuple(map(float, raw["image_mean"])),
                std=tuple(map(float, raw["image_std"])),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} names no size, image_mean and image_std; replace it"
            ) from error

    def __call__(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """Float pixels [B, 3, H, W]."""
        arrays = np.stack([np.asarray(self._resized(p), dtype=np.float32) for p in pictures])
        normal = (arrays / 255 - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return torch.from_numpy(normal).permute(0, 3, 1, 2).float()

    def _resized(self, picture: Image.Image) -> Image.Image:
        if self.shortest_edge is None:
            return picture.resize(self.size, Image.Resampling.BICUBIC)
        scale = self.shortest_edge / min(picture.size)
        width, height = (max(1, round(side * scale)) for side in picture.size)
        scaled = picture.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - self.size[0]) // 2, (height - self.size[1]) // 2
        return scaled.crop((left, top, left + self.size[0], top + self.size[1]))


def _sides(size: Any) -> tuple[int, int]:
    if isinstance(size, dict):
        return int(size["width"]), int(size["height"])
    return int(size), int(size)


def _load(folder: Path, kinds: set[str], option: str) -> Any:
    if not (folder / "config.json").is_file():
        raise UserError(f"{option} {folder} is not a checkpoint folder (no config.json)")
    if not list(folder.glob("*.safetensors")):
        raise UserError(
            f"{option} {folder} holds no *.safetensors; convert its weights, pickles are not read"
        )
    check_index(folder)
    found = AutoConfig.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    ).model_type
    if found not in kinds:
        raise UserError(
            f"{option} {folder} holds a {found} model, not {' or '.join(sorted(kinds))}"
        )
    model = AutoModel.from_pretrained(
        folder,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        dtype=torch.float32,
    )
    return model.eval()


def _unit(features: torch.Tensor) -> Features:
    normal: Features = torch.nn.functional.normalize(features.float(), dim=-1).numpy()
    return normal
