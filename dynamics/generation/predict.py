"""The served generator: a picture and an action sentence in, the best of N next pictures out."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from dynamics.config import VerifierName
from dynamics.generation.fdp import ForwardDynamics
from dynamics.generation.verify import best_of_n
from dynamics.labelling.idm import InverseDynamics
from dynamics.models.base import ImageTokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The chosen next frame and the verifier's opinion of every candidate."""

    frame: NDArray[np.uint8]
    """uint8 [H, W, 3]."""
    scores: tuple[float, ...]
    """One per candidate, higher is better, in nats."""
    chosen: int
    """Index of the frame's score."""


class Predictor:
    """IDM and FDP of one round behind a single call. Not safe to call from two threads at once."""

    def __init__(
        self,
        idm: InverseDynamics,
        fdp: ForwardDynamics,
        images: ImageTokenizer,
        verifier: VerifierName,
    ) -> None:
        self._idm = idm
        self._fdp = fdp
        self._images = images
        self._verifier: VerifierName = verifier

    def predict(
        self, picture: Image.Image, action: str, *, num_samples: int, temperature: float, seed: int
    ) -> Answer:
        """The next frame after ``action``; the picture is cropped to its square and scaled."""
        source_BL = self._images.encode(self.to_frame(picture)[None])
        prediction = best_of_n(
            source_BL,
            [action],
            self._idm,
            self._fdp,
            verifier=self._verifier,
            num_samples=num_samples,
            temperature=temperature,
            seeds=[seed],
        )
        return Answer(
            frame=self._images.decode(prediction.best)[0],
            scores=tuple(float(score) for score in prediction.scores[0]),
            chosen=int(prediction.chosen[0]),
        )

    def to_frame(self, picture: Image.Image) -> NDArray[Any]:
        """uint8 [H, W, 3] as the tokenizer wants it, by the area filter that ingest uses."""
        side = self._images.frame_px
        square = ImageOps.fit(picture.convert("RGB"), (side, side), Image.Resampling.BOX)
        return np.array(square)
