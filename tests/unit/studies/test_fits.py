"""Labels that the study's filter arms accept."""

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


def accepted(arm: str, table: pa.Table) -> list[str]:
    decisions = decisions_of(arm, table, load_domain(LoopConfig()))
    ids = set(decisions.filter(decisions["accepted"])["label_id"].to_pylist())
    rows = table.to_pylist()
    return [row["action"].split()[0] for row in rows if row["label_id"] in ids]


def test_balanced_types_accept_as_many_of_each_type_though_one_is_trusted_less() -> None:
    table = labels(["push the red ring left"] * 4 + ["paint the red ring blue"] * 4)
    assert accepted("mean_logprob", table) == ["push"] * 4
    assert accepted("balanced_types", table) == ["push", "push", "paint", "paint"]


def test_the_arm_without_a_filter_accepts_every_label() -> None:
    assert len(accepted("all", labels(["push the red ring left"] * 5))) == 5
