"""A copier in the FDP's place."""

import numpy as np
import pyarrow as pa

from dynamics.core.config import GuardConfig, LoopConfig
from dynamics.core.domain import OpenVideo
from dynamics.evaluation.guards.leakage import Leakage
from dynamics.evaluation.guards.rules import GuardEvidence, copy_rate
from dynamics.storage.tables import codes_matrix
from dynamics.studies.guard_checks import with_copier

CODES = pa.list_(pa.uint16())


def evidence() -> GuardEvidence:
    """Evidence of an FDP that is correct on all of 20 pairs."""
    source, target = (pa.array(np.full((20, 4), code).tolist(), CODES) for code in (1, 2))
    results = pa.table({"greedy_codes": target, "fdp_copy": pa.array([False] * 20)})
    return GuardEvidence(
        results=results,
        heldout=pa.table({"source_codes": source, "target_codes": target}),
        labelled_actions=(),
        leakage=Leakage(num_heldout=20, by_digest=0, by_hash=0, either=0),
        domain=OpenVideo(LoopConfig()),
    )


def test_a_copier_is_blocked_where_the_fdp_passes() -> None:
    healthy = copy_rate(evidence(), GuardConfig())
    copier = copy_rate(with_copier(evidence()), GuardConfig())
    assert healthy is not None
    assert healthy.passed
    assert copier is not None
    assert not copier.passed
    assert copier.value == 1.0


def test_a_copier_leaves_the_rest_of_the_evidence_alone() -> None:
    healthy, copier = evidence(), with_copier(evidence())
    assert (codes_matrix(copier.results, "greedy_codes") == 1).all()
    assert copier.heldout.equals(healthy.heldout)
