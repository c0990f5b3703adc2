"""The states that image codes show, read by the domain from their decoded frames."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from dynamics.core.domain import Domain
from dynamics.inference.verifiers import Codes
from dynamics.models.image_tokenizer import ImageTokenizer

Success = list[bool | None]


def states_by_pair(truth: pa.Table) -> dict[str, tuple[str, str]]:
    """Source and target state of every pair of the ground truth (TRUTH_SCHEMA)."""
    columns = (truth[name].to_pylist() for name in ("pair_id", "source_state", "target_state"))
    return {pair: (source, target) for pair, source, target in zip(*columns, strict=True)}


class StateReader:
    """Reader of the states that decoded frames show; reads each distinct frame once."""

    def __init__(self, images: ImageTokenizer, domain: Domain) -> None:
        self._images = images
        self._domain = domain
        self._known: dict[bytes, str | None] = {}

    def read(self, codes_BL: Codes) -> list[str | None]:
        """States of B frames; None = unknown."""
        keys = [row.tobytes() for row in np.ascontiguousarray(codes_BL)]
        fresh = {key: row for row, key in enumerate(keys) if key not in self._known}
        if fresh:
            frames = self._images.decode(codes_BL[list(fresh.values())])
            self._known.update(zip(fresh, self._domain.states(frames), strict=True))
        return [self._known[key] for key in keys]

    def shows(self, codes_BL: Codes, states: Sequence[str | None]) -> Success:
        """Per frame, True when it shows its state; None where either is unknown.

        A frame whose true state is unknown is not even decoded.
        """
        known = [row for row, state in enumerate(states) if state is not None]
        found: Success = [None] * len(states)
        for row, shown in zip(known, self.read(codes_BL[known]), strict=True):
            found[row] = None if shown is None else shown == states[row]
        return found
