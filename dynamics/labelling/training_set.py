"""The grown training set: the labelled seed plus the pseudo-labels that were accepted."""

import pyarrow as pa
import pyarrow.compute as pc

from dynamics.core.records import PAIR_SCHEMA, TRANSITION_SCHEMA


def grow(seed: pa.Table, pool: pa.Table, accepted: pa.Table) -> pa.Table:
    """Join accepted labels with their frames and append them to the seed.

    Args:
        seed: TRANSITION_SCHEMA.
        pool: PAIR_SCHEMA, the pairs that were labelled.
        accepted: The labels to add, at least the columns of LABEL_SCHEMA, any order.

    Returns:
        TRANSITION_SCHEMA: the seed as it is (origin "seed"), then the accepted pairs sorted by
        pair_id, with the label_id as origin.

    Raises:
        ValueError: the pair of an accepted label is missing, or has two.
    """
    accepted = accepted.sort_by("pair_id")
    if pc.count_distinct(accepted["pair_id"]).as_py() != accepted.num_rows:
        raise ValueError("a pair has two accepted labels")
    rows = pc.index_in(accepted["pair_id"], value_set=pool["pair_id"].combine_chunks())
    if rows.null_count:
        raise ValueError(f"{rows.null_count} accepted labels have no pair in the pool")
    pairs = pool.select(PAIR_SCHEMA.names).take(rows)
    grown = pairs.append_column("action", accepted["action"]).append_column(
        "origin", accepted["label_id"]
    )
    columns = TRANSITION_SCHEMA.names
    return pa.concat_tables([seed.select(columns), grown.select(columns).cast(TRANSITION_SCHEMA)])
