"""A finding about a run's data, and what findings are made from."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dynamics.core.config import LoopConfig
from dynamics.models.image_tokenizer import ImageTokenizer
from dynamics.models.tokens import Tokens
from dynamics.storage.tables import codes_matrix

Frame = NDArray[np.uint8]
"""[H, W, 3]"""
Level = Literal["refuse", "warn", "fine"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What was found, how bad it is, what to do."""

    level: Level
    """``refuse``: a run on this data would be meaningless."""
    found: str
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """The data of a run that `pipeline.prepare` made, and what else findings read."""

    cfg: LoopConfig
    tokens: Tokens
    """Of the base, without its language model."""
    labelled: pa.Table
    """TRANSITION_SCHEMA without recognition weights, and so is ``heldout``."""
    heldout: pa.Table
    pool: pa.Table
    """PAIR_SCHEMA without recognition weights, at most the first pairs."""
    num_pool: int
    images: ImageTokenizer
    pictures: Mapping[str, tuple[Frame, Frame]] = field(default_factory=dict)
    """Real source and target frames of some held-out pairs, by pair_id."""
    counts: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    """ingest.json."""

    def counted(self, table: str) -> tuple[int, str]:
        """Clips of a table (labelled, heldout or pool), and the words for what was left out."""
        parts: list[Any] = [
            part for name, part in self.counts.items() if name.partition("/")[0] == table
        ]
        rejects: Counter[str] = sum((Counter(part.get("rejects", {})) for part in parts), Counter())
        names = ", ".join(f"{count:,} {name}" for name, count in sorted(rejects.items()))
        clips = sum(part.get("num_clips", 0) for part in parts)
        return clips, f"; left out: {names}" if names else ""

    @property
    def sets(self) -> dict[str, pa.Table]:
        """The tables by their name in messages."""
        return {"labelled": self.labelled, "held-out": self.heldout, "pool": self.pool}


def codes_of(pairs: pa.Table) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Codes [B, L] of the source and of the target frames."""
    return codes_matrix(pairs, "source_codes"), codes_matrix(pairs, "target_codes")


def unchanged(pairs: pa.Table) -> NDArray[np.bool_]:
    """Pairs whose two frames have the same codes, bool [B]."""
    source_BL, target_BL = codes_of(pairs)
    same: NDArray[np.bool_] = (source_BL == target_BL).all(axis=1)
    return same


def percent(share: float) -> str:
    """A share for a sentence."""
    return f"{100 * share:.0f} %"


def pretrained(evidence: Evidence) -> str:
    """What to do about a base that knows neither the pictures nor the words."""
    name = evidence.cfg.name
    return (
        f"set model.base to a new folder (runs/{name}-base) and make a base there from your own "
        "clips: dynamics pretrain"
    )
