"""The grown training set: the labelled seed plus the pseudo-labels that were accepted."""

import pyarrow as pa
import pyarrow.compute as pc

from dynamics.core.records import PAIR_SCHEMA, TRANSITION_SCHEMA


def grow(seed: pa.Table, pool: pa.Table, labels: pa.Table, decisions: pa.Table) -> pa.Table:
    """Join the accepted labels with their frames and append them to the seed.

    Args:
        seed: TRANSITION_SCHEMA.
        pool: PAIR_SCHEMA, the pairs that were labelled.
        labels: LABEL_SCHEMA.
        decisions: DECISION_SCHEMA over these labels, any order.

    Returns:
        TRANSITION_SCHEMA: the seed as it is (origin "seed"), then the accepted pairs sorted by
        pair_id, with the label_id as origin.

    Raises:
        ValueError: an accepted label or its pair is missing, or its pair is accepted twice.
    """
    accepted = decisions.filter(decisions["accepted"]).sort_by("pair_id")
    if pc.count_distinct(accepted["pair_id"]).as_py() != accepted.num_rows:
        raise ValueError("a pair has two accepted labels")
    chosen = labels.take(_rows(labels, "label_id", accepted))
    pairs = pool.select(PAIR_SCHEMA.names).take(_rows(pool, "pair_id", accepted))
    grown = pairs.append_column("action", chosen["action"]).append_column(
        "origin", accepted["label_id"]
    )
    columns = TRANSITION_SCHEMA.names
    return pa.concat_tables([seed.select(columns), grown.select(columns).cast(TRANSITION_SCHEMA)])


def _rows(table: pa.Table, key: str, accepted: pa.Table) -> pa.Array:
    """Row numbers in ``table`` of the accepted keys, in their order."""
    rows = pc.index_in(accepted[key], value_set=table[key].combine_chunks())
    if rows.null_count:
        raise ValueError(f"{rows.null_count} accepted labels have no row with their {key}")
    return rows
