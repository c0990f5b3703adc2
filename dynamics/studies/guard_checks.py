"""Guards over the study's rounds: none of these should be blocked, each with a copier should."""

from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa

from dynamics.core.records import TRANSITION_SCHEMA
from dynamics.evaluation.guards.leakage import Leakage
from dynamics.evaluation.guards.rules import GuardEvidence, copy_rate
from dynamics.evaluation.heldout import results_schema
from dynamics.storage.tables import read_table
from dynamics.studies.results import Check
from dynamics.studies.study import Study


def checks(studies: Sequence[Study]) -> list[Check]:
    """Both error rates, once the loops of all seeds are done."""
    if not all(study.is_done("loop") for study in studies):
        return []
    rounds = [(study, number) for study in studies for number in range(study.cfg.rounds + 1)]
    blocked = [where for where in rounds if _blocked(*where)]
    caught = [where for where in rounds if _copier_is_blocked(*where)]
    return [
        Check(
            claim="guards block a healthy round",
            asked="never",
            measured=f"{len(blocked)} of {len(rounds)} rounds",
            holds=not blocked,
        ),
        Check(
            claim="guards block a copier in the FDP's place",
            asked="always",
            measured=f"{len(caught)} of {len(rounds)} rounds",
            holds=caught == rounds,
        ),
    ]


def _blocked(study: Study, round_id: int) -> bool:
    report = study.run.report(round_id)
    assert report is not None
    return not all(guard.passed for guard in report.guards)


def _copier_is_blocked(study: Study, round_id: int) -> bool:
    items = read_table(study.run.results(round_id), results_schema(study.cfg.evaluate.best_of))
    heldout = read_table(study.run.heldout, TRANSITION_SCHEMA)
    nothing = Leakage(num_heldout=items.num_rows, by_digest=0, by_hash=0, either=0)
    evidence = GuardEvidence(
        items=items, heldout=heldout, labelled_actions=(), leakage=nothing, domain=study.domain
    )
    verdict = copy_rate(with_copier(evidence), study.cfg.guards)
    return verdict is not None and not verdict.passed


def with_copier(evidence: GuardEvidence) -> GuardEvidence:
    """The evidence, had the FDP only given its input back; no oracle reads it, as on real video."""
    items = evidence.items
    unread = pa.nulls(items.num_rows, pa.bool_())
    for name, values in (
        ("greedy_codes", evidence.heldout["source_codes"]),
        ("fdp_copy", unread),
    ):
        place = items.schema.get_field_index(name)
        items = items.set_column(place, items.schema.field(name), values)
    return replace(evidence, items=items)
