"""The state that a frame shows, read by the tabletop's oracle."""

from collections.abc import Sequence

import numpy as np

from dynamics.core.config import WorldConfig
from dynamics.inference.verifiers import Codes
from dynamics.models.image_tokenizer import ImageTokenizer
from dynamics.tabletop.oracle import read_scenes

Success = list[bool | None]


class StateReader:
    """Image codes to the state that their decoded frame shows; each distinct frame once."""

    def __init__(self, images: ImageTokenizer, world: WorldConfig):
        self._images = images
        self._world = world
        self._known: dict[bytes, str] = {}

    def read(self, codes_BL: Codes) -> list[str]:
        """Canonical scene texts of B frames."""
        keys = [row.tobytes() for row in np.ascontiguousarray(codes_BL)]
        fresh = {key: row for row, key in enumerate(keys) if key not in self._known}
        if fresh:
            frames = self._images.decode(codes_BL[list(fresh.values())])
            scenes = read_scenes(frames, self._world)
            texts = [scene.to_text() for scene in scenes]
            self._known.update(zip(fresh, texts, strict=True))
        return [self._known[key] for key in keys]

    def shows(self, codes_BL: Codes, states: Sequence[str | None]) -> Success:
        """Whether each frame shows its state; None, unread, where the state is unknown.

        Real pictures have no state: the oracle could not even cut them into cells.
        """
        known = [row for row, state in enumerate(states) if state is not None]
        verdicts: Success = [None] * len(states)
        for row, shown in zip(known, self.read(codes_BL[known]), strict=True):
            verdicts[row] = shown == states[row]
        return verdicts
