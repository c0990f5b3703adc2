"""What the study's filter arms keep."""

import pyarrow as pa

from dynamics.core.config import LoopConfig
from dynamics.core.domain import load_domain
from dynamics.core.records import LABEL_SCHEMA
from dynamics.studies.fits import decisions_of
from tests.unit.storage.rows import make_labels


def labels(actions: list[str]) -> pa.Table:
    """The first one is trusted most."""
    rows = make_labels(len(actions)).to_pylist()
    for place, (row, action) in enumerate(zip(rows, actions, strict=True)):
        row |= {"action": action, "scores": {"mean_logprob": -float(place)}, "clip_class": ""}
    return pa.Table.from_pylist(rows, LABEL_SCHEMA)


def kept(arm: str, table: pa.Table) -> list[str]:
    decisions = decisions_of(arm, table, load_domain(LoopConfig()))
    accepted = set(decisions.filter(decisions["accepted"])["label_id"].to_pylist())
    rows = table.to_pylist()
    return [row["action"].split()[0] for row in rows if row["label_id"] in accepted]


def test_balanced_types_keep_as_many_of_each_type_though_one_is_trusted_less() -> None:
    table = labels(["push the red ring left"] * 4 + ["paint the red ring blue"] * 4)
    assert kept("mean_logprob", table) == ["push"] * 4
    assert kept("balanced_types", table) == ["push", "push", "paint", "paint"]


def test_the_arm_without_a_filter_keeps_every_label() -> None:
    assert len(kept("all", labels(["push the red ring left"] * 5))) == 5
