"""The training set of a round: the labelled set and the labels that were accepted."""

from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.compute as pc

from dynamics.core.places import Place
from dynamics.core.records import LABEL_SCHEMA, PAIR_SCHEMA, TRANSITION_SCHEMA, DatasetRef
from dynamics.storage.buckets import Buckets
from dynamics.storage.pairs import TableWriter, stored_rows, stored_schema

_WANTED = pa.schema([LABEL_SCHEMA.field(name) for name in ("label_id", "pair_id", "action")])


def build_training_set(
    labelled: DatasetRef,
    pool: DatasetRef,
    accepted: Iterable[pa.Table],
    out: Place,
    codes: Place,
) -> DatasetRef:
    """Write the labelled set as it is, then the accepted pairs by pair_id (TRANSITION_SCHEMA).

    Args:
        labelled: TRANSITION_SCHEMA, origin "labelled".
        pool: PAIR_SCHEMA, the pairs that were labelled.
        accepted: The labels to add, at least label_id, pair_id and action, any order.
        out: Folder of the table.
        codes: Folder of the run's codes files.

    Raises:
        ValueError: the pair of an accepted label is missing, or has two.
    """
    writer = TableWriter(out, TRANSITION_SCHEMA, codes)
    for rows in stored_rows(labelled, TRANSITION_SCHEMA, codes):
        writer.append(rows)
    for rows in _accepted_rows(pool, accepted, codes):
        writer.append(rows)
    return writer.finish()


def _accepted_rows(
    pool: DatasetRef, accepted: Iterable[pa.Table], codes: Place
) -> Iterator[pa.Table]:
    """The accepted pairs in stored form, by pair_id; a bucket of both tables at a time."""
    with (
        Buckets(_WANTED, "pair_id", pool.num_rows) as wanted,
        Buckets(stored_schema(PAIR_SCHEMA), "pair_id", pool.num_rows) as pairs,
    ):
        for rows in accepted:
            wanted.add(rows.select(_WANTED.names))
        if prefixes := wanted.prefixes():
            for rows in stored_rows(pool, PAIR_SCHEMA, codes):
                pairs.add(rows)
            pairs.prefixes()
        for prefix in prefixes:
            yield with_actions(pairs.bucket(prefix), wanted.bucket(prefix))


def with_actions(pairs: pa.Table, accepted: pa.Table) -> pa.Table:
    """The pairs of accepted labels, by pair_id, with ``action`` and ``origin``.

    Args:
        pairs: with pair_id and whatever else.
        accepted: with label_id, pair_id and action.

    Raises:
        ValueError: the pair of an accepted label is missing, or has two.
    """
    accepted = accepted.combine_chunks().sort_by("pair_id")
    if pc.count_distinct(accepted["pair_id"]).as_py() != accepted.num_rows:
        raise ValueError("a pair has two accepted labels")
    rows = pc.index_in(accepted["pair_id"], value_set=pairs["pair_id"].combine_chunks())
    if rows.null_count:
        raise ValueError(f"{rows.null_count} accepted labels have no pair in the pool")
    added = pairs.combine_chunks().take(rows).append_column("action", accepted["action"])
    return added.append_column("origin", accepted["label_id"])
