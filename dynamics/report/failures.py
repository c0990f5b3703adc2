"""Gallery of failures: held-out pairs whose next frame was drawn wrong, the hardest kinds first."""

from collections import defaultdict
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from dynamics.report.pictures import Frames, Picture, picture

_KINDS, _PER_KIND = 6, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureView:
    """A pair whose greedy frame is wrong."""

    kind: str
    """The action's kind."""
    success: float
    """Share of the kind's pairs that were drawn right, 0..1."""
    action: str
    source: Picture
    drawn: Picture
    target: Picture


def wrong_frames(items: pa.Table, heldout: pa.Table) -> pa.Table:
    """The first wrong greedy frames of the kinds of action with the least success.

    Args:
        items: a round's results (`evaluation.heldout.results_schema`).
        heldout: TRANSITION_SCHEMA with the same pairs, any order.

    Returns:
        Columns kind, success, action, source_codes, greedy_codes, target_codes; no row where the
        truth is unknown.
    """
    known = items.filter(pc.is_valid(items["fdp_greedy_success"]))
    rates = known.group_by("action_kind").aggregate([("fdp_greedy_success", "mean")])
    success = dict(zip(*(column.to_pylist() for column in rates.columns), strict=True))
    wrong = known.filter(pc.invert(known["fdp_greedy_success"]))
    rows: dict[str, list[int]] = defaultdict(list)
    for row, kind in enumerate(wrong["action_kind"].to_pylist()):
        rows[kind].append(row)
    kinds = sorted(rows, key=lambda kind: (success[kind], kind or ""))[:_KINDS]
    kept = [row for kind in kinds for row in rows[kind][:_PER_KIND]]
    shown = wrong.take(pa.array(kept, pa.int64()))
    where = pc.index_in(shown["pair_id"], value_set=heldout["pair_id"].combine_chunks())
    pairs = heldout.take(where)
    return pa.table(
        {
            "kind": shown["action_kind"],
            "success": pa.array(
                [success[kind] for kind in shown["action_kind"].to_pylist()], pa.float64()
            ),
            "action": shown["action"],
            "source_codes": pairs["source_codes"],
            "greedy_codes": shown["greedy_codes"],
            "target_codes": pairs["target_codes"],
        }
    )


def failures(shown: pa.Table, frames: Frames) -> list[FailureView]:
    """The rows of `wrong_frames`, drawn."""
    return [
        FailureView(
            kind=row["kind"] or "other",
            success=row["success"],
            action=row["action"],
            source=picture(frames.of(row["source_codes"])),
            drawn=picture(frames.of(row["greedy_codes"])),
            target=picture(frames.of(row["target_codes"])),
        )
        for row in shown.to_pylist()
    ]
