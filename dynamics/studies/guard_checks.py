"""Guards over the study's rounds: none should be blocked, each should with a copier as its FDP."""

from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa

from dynamics.core.records import TRANSITION_SCHEMA
from dynamics.evaluation.guards.leakage import Leakage
from dynamics.evaluation.guards.rules import GuardEvidence, copy_rate
from dynamics.evaluation.heldout import results_schema
from dynamics.storage.tables import read_table
from dynamics.studies.experiments import LOOP
from dynamics.studies.results import Check
from dynamics.studies.study import Study


def checks(studies: Sequence[Study]) -> list[Check]:
    """Both error rates of the guards, once the loops of all seeds are done."""
    if not all(study.is_done(LOOP) for study in studies):
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
    results = read_table(study.run.results(round_id), results_schema(study.cfg.evaluate.best_of))
    heldout = read_table(study.run.heldout, TRANSITION_SCHEMA)
    nothing = Leakage(num_heldout=results.num_rows, by_digest=0, by_hash=0, either=0)
    evidence = GuardEvidence(
        results=results, heldout=heldout, labelled_actions=(), leakage=nothing, domain=study.domain
    )
    result = copy_rate(with_copier(evidence), study.cfg.guards)
    return result is not None and not result.passed


def with_copier(evidence: GuardEvidence) -> GuardEvidence:
    """The evidence of an FDP that returns its input, read by no oracle, as on real video."""
    results = evidence.results
    unread = pa.nulls(results.num_rows, pa.bool_())
    for name, values in (
        ("greedy_codes", evidence.heldout["source_codes"]),
        ("fdp_copy", unread),
    ):
        place = results.schema.get_field_index(name)
        results = results.set_column(place, results.schema.field(name), values)
    return replace(evidence, results=results)
