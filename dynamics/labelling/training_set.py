"""The training set of a round: the labelled set and the labels that were accepted."""

import pyarrow as pa
import pyarrow.compute as pc

from dynamics.core.records import PAIR_SCHEMA, TRANSITION_SCHEMA


def build_training_set(labelled: pa.Table, pool: pa.Table, accepted: pa.Table) -> pa.Table:
    """Join accepted labels with their frames and append them to the labelled set.

    Args:
        labelled: TRANSITION_SCHEMA, origin "labelled".
        pool: PAIR_SCHEMA, the pairs that were labelled.
        accepted: The labels to add, at least the columns of LABEL_SCHEMA, any order.

    Returns:
        TRANSITION_SCHEMA: the labelled set as it is, then the accepted pairs by pair_id.

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
    added = pairs.append_column("action", accepted["action"])
    added = added.append_column("origin", accepted["label_id"])
    columns = TRANSITION_SCHEMA.names
    return pa.concat_tables(
        [labelled.select(columns), added.select(columns).cast(TRANSITION_SCHEMA)]
    )
