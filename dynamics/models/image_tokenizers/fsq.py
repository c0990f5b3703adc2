"""The tiny image tokenizer: a small autoencoder with finite scalar quantisation.

FSQ (arXiv 2309.15505) rounds every channel to a few levels instead of searching a codebook: no
codebook to collapse, and at this scale far more of the frame survives than with VQ-EMA. One code
covers one ``patch_px`` square, so an unchanged cell of the table keeps its code.
"""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from dynamics.core.errors import UserError
from dynamics.core.text_files import read_json_object
from dynamics.models.checkpoint import read_tensors
from dynamics.models.image_tokenizer import Precision
from dynamics.models.image_tokenizers.frames import AREA, centre_crop, check_frames

CONFIG_FILE = "image_tokenizer.json"
WEIGHTS_FILE = "image_tokenizer.safetensors"
_ENCODE_BATCH = 16
"""Frames are encoded so many at a time, never fewer: CPUs round products of other shapes
differently. So a frame has the same features in any company, and those of larger batches; with 8 an
eighth of them moved by 1e-5 (no code did)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FsqConfig:
    """Sizes of the tokenizer; saved beside its weights."""

    frame_px: int
    patch_px: int = 8
    width: int = 128
    levels: tuple[int, ...] = (5, 5, 5, 4)

    @property
    def num_codes(self) -> int:
        """Product of the levels."""
        return int(np.prod(self.levels))


class FsqAutoencoder(nn.Module):
    """Patch encoder, FSQ bottleneck, patch decoder."""

    levels: Tensor
    basis: Tensor

    def __init__(self, config: FsqConfig) -> None:
        super().__init__()
        width, half = config.width, config.patch_px // 2
        self.config = config
        self.encoder = nn.Sequential(
            nn.Conv2d(3, width, half, stride=half),
            nn.GELU(),
            nn.Conv2d(width, width, 2, stride=2),
            nn.GELU(),
            nn.Conv2d(width, len(config.levels), 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(len(config.levels), width, 1),
            nn.GELU(),
            nn.ConvTranspose2d(width, width, 2, stride=2),
            nn.GELU(),
            nn.ConvTranspose2d(width, 3, half, stride=half),
        )
        levels = torch.tensor(config.levels, dtype=torch.float32)
        basis = torch.cumprod(torch.tensor([1, *config.levels[:-1]]), dim=0)
        self.register_buffer("levels", levels, persistent=False)
        self.register_buffer("basis", basis, persistent=False)

    def centre(self, colour_3: Tensor) -> None:
        """Start of a training on frames whose ground has a colour, -1..1, [3].

        Its squares get latents near the middle, which decode to it. Frames that are nearly all
        white teach a constant otherwise, and then nothing more: all latents round to the same
        levels, so the decoder learns to ignore them.
        """
        first, last = self.encoder[0].get_parameter, self.decoder[-1].get_parameter
        with torch.no_grad():
            first("bias").copy_(-(first("weight").sum((2, 3)) @ colour_3))
            last("bias").copy_(colour_3)

    def bound(self, pixels_B3HW: Tensor) -> Tensor:
        """Continuous latent [B, L, D], each channel within 0 .. levels - 1."""
        latent = self.encoder(pixels_B3HW).flatten(2).transpose(1, 2)
        # A little beyond the outer levels, so that they are reachable before saturation.
        return (
            ((torch.tanh(latent) * 1.02 + 1) / 2 * (self.levels - 1))
            .clamp(min=0)
            .minimum(self.levels - 1)
        )

    def reconstruct(self, latent_BLD: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] in about -1..1 from the (rounded) latents of a square."""
        side = math.isqrt(latent_BLD.shape[1])
        centred = latent_BLD / (self.levels - 1) * 2 - 1
        grid = centred.transpose(1, 2).reshape(len(centred), -1, side, side)
        decoded: Tensor = self.decoder(grid)
        return decoded

    def codes(self, latent_BLD: Tensor) -> Tensor:
        """Integer codes [B, L]."""
        return (latent_BLD.round().long() * self.basis).sum(-1)

    def latents(self, codes_BL: Tensor) -> Tensor:
        """Rounded latents [B, L, D] of codes."""
        return (codes_BL[..., None] // self.basis % self.levels.long()).float()


def to_pixels(frames_BHW3: np.ndarray, device: str = "cpu") -> Tensor:
    """uint8 [B, H, W, 3] to float [B, 3, H, W] in -1..1, on ``device``."""
    frames = torch.from_numpy(np.ascontiguousarray(frames_BHW3)).to(device)
    return frames.permute(0, 3, 1, 2).float() / 127.5 - 1


def to_frames(pixels_B3HW: Tensor) -> np.ndarray:
    """Pixels in about -1..1 to uint8 frames [B, H, W, 3]; inverse of `to_pixels`."""
    levels = ((pixels_B3HW + 1) * 127.5).round().clamp(0, 255).byte()
    frames: np.ndarray = levels.permute(0, 2, 3, 1).cpu().numpy()
    return frames


class FsqTokenizer:
    """`ImageTokenizer` over an `FsqAutoencoder`."""

    def __init__(self, model: FsqAutoencoder, *, batch_size: int = 512) -> None:
        self.model = model.eval().requires_grad_(False)
        self.frame_px = model.config.frame_px
        self.bars: tuple[int, int, int] | None = None
        self.num_tokens = (model.config.frame_px // model.config.patch_px) ** 2
        self.num_codes = model.config.num_codes
        self.precision: Precision = "float32"
        self._batch_size = batch_size

    def _latents(self, frames_BHW3: np.ndarray) -> Tensor:
        check_frames(frames_BHW3, self.frame_px)
        missing = -len(frames_BHW3) % _ENCODE_BATCH
        filled = np.pad(frames_BHW3, [(0, missing), (0, 0), (0, 0), (0, 0)])
        parts = np.split(filled, range(_ENCODE_BATCH, len(filled), _ENCODE_BATCH))
        with torch.inference_mode():
            latents = torch.cat([self.model.bound(to_pixels(part)) for part in parts])
        return latents[: len(frames_BHW3)]

    def fit(self, picture: Image.Image) -> np.ndarray:
        """An RGB picture of any size as uint8 frame [H, W, 3], centre-cropped as ingest does."""
        return centre_crop(picture, self.frame_px, AREA)

    def encode(self, frames_BHW3: np.ndarray) -> np.ndarray:
        """uint8 frames to int64 codes [B, L]."""
        return self.encode_with_features(frames_BHW3)[0]

    def encode_with_features(self, frames_BHW3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Codes, and the latents before rounding, float32 [B, L, D]."""
        latents_BLD = self._latents(frames_BHW3)
        return self.model.codes(latents_BLD).numpy(), latents_BLD.numpy()

    def decode(self, codes_BL: np.ndarray) -> np.ndarray:
        """Codes to uint8 frames [B, H, W, 3]."""
        codes = torch.from_numpy(np.asarray(codes_BL, dtype=np.int64))
        with torch.inference_mode():
            parts = [
                self.model.reconstruct(self.model.latents(c))
                for c in torch.split(codes, self._batch_size)
            ]
            return to_frames(torch.cat(parts))

    def save(self, folder: Path) -> None:
        """Write config and safetensors into a checkpoint folder."""
        (folder / CONFIG_FILE).write_text(json.dumps(asdict(self.model.config), indent=2) + "\n")
        save_file(self.model.state_dict(), folder / WEIGHTS_FILE)

    @classmethod
    def load(cls, folder: Path) -> "FsqTokenizer":
        """Read what `save` wrote.

        Raises:
            UserError: the folder holds no tiny image tokenizer.
        """
        if not (folder / CONFIG_FILE).is_file() or not (folder / WEIGHTS_FILE).is_file():
            raise UserError(f"{folder} holds no image tokenizer ({CONFIG_FILE}, {WEIGHTS_FILE})")
        raw = read_json_object(folder / CONFIG_FILE)
        weights = read_tensors(folder / WEIGHTS_FILE)
        try:
            model = FsqAutoencoder(FsqConfig(**{**raw, "levels": tuple(raw["levels"])}))
            model.load_state_dict(weights)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(
                f"{folder}/{CONFIG_FILE} and {WEIGHTS_FILE} do not belong together ({error})"
            ) from error
        return cls(model)
