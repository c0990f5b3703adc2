"""Measures that need no oracle: does the FDP listen to its action, and what do two baselines get.

The first held-out pairs are asked, each about its true sentence and others of the labelled set. An
FDP that ignores its sentence finds the true frame equally likely after all of them.

B pairs, L codes a frame.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dynamics.core.config import LoopConfig
from dynamics.core.domain import Domain
from dynamics.core.seeds import numpy_rng
from dynamics.inference.fdp import ForwardDynamics
from dynamics.storage.tables import codes_matrix, with_columns

NUM_ASKED = 100
"""Held-out pairs, the first ones, whose FDP is asked about other sentences."""
MOST_OTHERS = 8
"""Other sentences that a pair is asked about."""


class Sentences:
    """The sentences of the labelled set, the first wording of every meaning."""

    def __init__(self, actions: Sequence[str], domain: Domain) -> None:
        self._domain = domain
        meanings = [self._meaning(action) for action in actions]
        self._wordings = dict(zip(reversed(meanings), reversed(actions), strict=True))
        self._meanings = sorted(self._wordings)
        self._most_common = Counter(meanings).most_common(1)[0][0]

    def _meaning(self, action: str) -> str:
        return self._domain.meaning(action) or action

    @property
    def wordings(self) -> list[str]:
        """One sentence of every meaning."""
        return [self._wordings[meaning] for meaning in self._meanings]

    def others(self, action: str, rng: np.random.Generator) -> list[str]:
        """At most `MOST_OTHERS` sentences that mean something else, drawn."""
        own = self._meaning(action)
        drawn = rng.permutation(len(self._meanings))[: MOST_OTHERS + 1]
        found = [name for name in (self._meanings[row] for row in drawn) if name != own]
        return [self._wordings[meaning] for meaning in found[:MOST_OTHERS]]

    def is_most_common(self, action: str) -> bool:
        """True when always saying the labelled set's most common sentence is right here."""
        return self._meaning(action) == self._most_common


def with_probes(
    results: pa.Table,
    heldout: pa.Table,
    fdp: ForwardDynamics,
    sentences: Sentences,
    cfg: LoopConfig,
    round_id: int,
    num_asked: int,
) -> pa.Table:
    """Held-out results with ``majority_exact``, ``code_ceiling`` and ``action_margins`` filled in.

    Args:
        results: `evaluation.heldout.results_schema`.
        heldout: TRANSITION_SCHEMA, the same pairs in the same order.
        fdp: of the round.
        sentences: of the labelled set.
        cfg: seed and batch size.
        round_id: part of every pair's seed.
        num_asked: how many of the first rows are asked; those whose codes do not change never are.
    """
    asked = heldout.slice(0, num_asked)
    source_BL, target_BL = (codes_matrix(asked, f"{end}_codes") for end in ("source", "target"))
    rows = np.flatnonzero((source_BL != target_BL).any(axis=1))
    ceiling: list[float | None] = [None] * results.num_rows
    margins: list[list[float] | None] = [None] * results.num_rows
    pair_ids, actions = (asked[name].to_pylist() for name in ("pair_id", "action"))
    for start in range(0, len(rows), cfg.evaluate.batch_size):
        batch = rows[start : start + cfg.evaluate.batch_size]
        source, target = source_BL[batch], target_BL[batch]
        seen = fdp.images.encode(fdp.images.decode(target))
        seeds = [numpy_rng(cfg.seed, round_id, pair_ids[row], "others") for row in batch]
        said = [actions[row] for row in batch]
        others = [sentences.others(a, rng) for a, rng in zip(said, seeds, strict=True)]
        found = action_margins(fdp, source, said, others, target)
        for place, row in enumerate(batch):
            changed = source[place] != target[place]
            ceiling[row] = float((seen[place] == target[place])[changed].mean())
            margins[row] = found[place]
    columns: dict[str, Sequence[Any]] = {
        "majority_exact": [sentences.is_most_common(a) for a in results["action"].to_pylist()],
        "code_ceiling": ceiling,
        "action_margins": margins,
    }
    return with_columns(results, columns)


def action_margins(
    fdp: ForwardDynamics,
    source_BL: NDArray[np.int64],
    actions: Sequence[str],
    others: Sequence[Sequence[str]],
    target_BL: NDArray[np.int64],
) -> list[list[float]]:
    """Per pair, log p(target | source, its action) - log p(target | source, other), per other."""
    asked = [[action, *more] for action, more in zip(actions, others, strict=True)]
    sizes = [len(group) for group in asked]
    rows = np.repeat(np.arange(len(asked)), sizes)
    flat = [sentence for group in asked for sentence in group]
    scores = np.split(
        fdp.frame_logprobs(source_BL[rows], flat, target_BL[rows]), np.cumsum(sizes)[:-1]
    )
    return [(one[0] - one[1:]).tolist() for one in scores]


def beaten(margins: Sequence[float]) -> float:
    """Share of the other sentences after which the true frame is less likely; ties count half."""
    column = np.asarray(margins)
    return float(np.mean((column > 0) + 0.5 * (column == 0)))
