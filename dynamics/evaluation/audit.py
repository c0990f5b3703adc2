"""An audit of accepted labels: how many of them are wrong, by people who did not see them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from dynamics.core.domain import Domain, same_action
from dynamics.core.records import Estimate
from dynamics.evaluation.confusion import SentenceView, by_sentence
from dynamics.evaluation.intervals import wilson

NOTHING = "nothing changes"
"""Meaning of a pair whose frames people find equal: no label says so, so its label is wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelAudit:
    """What people say of a random sample of a round's accepted labels."""

    round_id: int
    num_accepted: int
    num_unsure: int
    """Labels of the sample that nobody could judge; the share counts the others only."""
    wrong: Estimate | None
    """Share of the accepted labels that are wrong, 95 % Wilson interval; None before any answer."""
    sentences: tuple[SentenceView, ...]
    """The sample by people's sentences, in the domain's one wording, with the labels instead."""

    def to_json(self) -> dict[str, Any]:
        """A plain dict for JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, payload: dict[str, Any]) -> "LabelAudit":
        """Inverse of `to_json`."""
        wrong = payload["wrong"] and Estimate(**payload["wrong"])
        sentences = tuple(SentenceView(**one) for one in payload["sentences"])
        return cls(**payload | {"wrong": wrong, "sentences": sentences})


def audit(
    round_id: int, accepted: Mapping[str, str], said: Mapping[str, str | None], domain: Domain
) -> LabelAudit:
    """Compare accepted labels with what people say of the same pairs.

    Args:
        round_id: of the round that accepted them.
        accepted: sentence by label_id, of all accepted labels.
        said: people's sentence by label_id, of labels drawn at random; "" where nothing changes,
            None where nobody is sure.
        domain: tells which sentences mean the same.
    """
    rows = [
        {
            "action": (domain.meaning(true) or true) if true else NOTHING,
            "idm_action": domain.meaning(accepted[label]) or accepted[label],
            "idm_exact": bool(true) and same_action(domain, accepted[label], true),
            "code_changed_accuracy": None,
        }
        for label, true in said.items()
        if true is not None
    ]
    num_wrong = sum(not row["idm_exact"] for row in rows)
    return LabelAudit(
        round_id=round_id,
        num_accepted=len(accepted),
        num_unsure=len(said) - len(rows),
        wrong=wilson(num_wrong, len(rows), len(accepted)) if rows else None,
        sentences=tuple(by_sentence(rows)),
    )
