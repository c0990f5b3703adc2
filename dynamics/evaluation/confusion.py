"""What the IDM says instead: held-out pairs by their true sentence."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from dynamics.core.domain import Domain

MOST_SENTENCES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SentenceView:
    """The held-out pairs of one true sentence."""

    action: str
    num_pairs: int
    num_exact: int
    """Pairs for which the IDM writes this very action, in any wording."""
    instead: str
    """The commonest other sentence that it writes for them; "" when there is none."""
    num_instead: int
    changed: float | None
    """Mean share of the changed codes that the FDP draws right; None where no code changes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KindView:
    """The held-out pairs of one true type of action."""

    kind: str
    num_pairs: int
    num_right: int
    """Pairs for which the IDM writes an action of the same effect, or, where that is unknown, this
    very one."""
    said: Mapping[str, int]
    """Pairs by the type of the action that the IDM writes; "" is a sentence without one."""


def by_kind(results: pa.Table, domain: Domain) -> list[KindView]:
    """The types of actions of held-out results, by name; empty where the domain knows none."""
    columns = ["action_kind", "idm_action", "idm_exact", "idm_correct"]
    rows = results.select(columns).to_pylist()
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["action_kind"]:
            groups.setdefault(row["action_kind"], []).append(row)
    return [
        KindView(
            kind=kind,
            num_pairs=len(group),
            num_right=sum(
                row["idm_exact"] if row["idm_correct"] is None else row["idm_correct"]
                for row in group
            ),
            said=Counter(domain.kind(row["idm_action"]) for row in group),
        )
        for kind, group in sorted(groups.items())
    ]


def confusion(results: pa.Table) -> list[SentenceView]:
    """The commonest true sentences of held-out results, at most `MOST_SENTENCES`.

    Empty where the domain knows types of actions: their table says more than single sentences.
    """
    columns = ["action", "action_kind", "idm_action", "idm_exact", "code_changed_accuracy"]
    rows = results.select(columns).to_pylist()
    return [] if any(row["action_kind"] for row in rows) else by_sentence(rows)


def by_sentence(rows: Sequence[Mapping[str, Any]]) -> list[SentenceView]:
    """The commonest of ``action``, at most `MOST_SENTENCES`, with the ``idm_action`` instead."""
    common = Counter(row["action"] for row in rows).most_common(MOST_SENTENCES)
    groups: dict[str, list[Mapping[str, Any]]] = {action: [] for action, _ in common}
    for row in rows:
        if row["action"] in groups:
            groups[row["action"]].append(row)
    return [_view(action, group) for action, group in groups.items()]


def _view(action: str, rows: list[Mapping[str, Any]]) -> SentenceView:
    wrong = Counter(row["idm_action"] for row in rows if not row["idm_exact"])
    instead, num_instead = wrong.most_common(1)[0] if wrong else ("", 0)
    changed = [row["code_changed_accuracy"] for row in rows]
    known = [share for share in changed if share is not None]
    return SentenceView(
        action=action,
        num_pairs=len(rows),
        num_exact=sum(row["idm_exact"] for row in rows),
        instead=instead,
        num_instead=num_instead,
        changed=sum(known) / len(known) if known else None,
    )
