"""Gallery of failures: held-out pairs whose next frame is wrong, the hardest kinds first.

Shown is what best of N chose wrongly, if anything, and first what its verifier was surest of.
"""

from collections import defaultdict
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from dynamics.report.grid import largest_best_of
from dynamics.report.pictures import Frames, Picture, picture

_KINDS, _PER_KIND = 6, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureView:
    """A pair whose frame is wrong."""

    kind: str
    """The action's kind."""
    success: float
    """Share of the kind's pairs that were drawn right, 0..1."""
    score: float | None
    """The verifier's, of a frame that best of N chose; None for a greedy one."""
    action: str
    source: Picture
    drawn: Picture
    target: Picture


def wrong_frames(items: pa.Table, heldout: pa.Table) -> pa.Table:
    """The wrong frames of the kinds of action with the least success, the highest score first.

    Greedy frames, the first ones, where best of N was not evaluated, chose no wrong frame, or has
    no stored scores, as in runs of older versions.

    Args:
        items: a round's results (`evaluation.heldout.results_schema`).
        heldout: TRANSITION_SCHEMA with the same pairs, any order.

    Returns:
        Columns kind, success, score, action, source_codes, drawn_codes, target_codes; no row where
        the truth is unknown.
    """
    drawn, right, score = "greedy_codes", "fdp_greedy_success", pa.nulls(items.num_rows)
    curve, scored = largest_best_of(items), items.filter(pc.is_valid(items["best_score"]))
    if curve is not None and pc.any(pc.invert(scored[curve])).as_py():
        items = scored.sort_by([("best_score", "descending")])
        drawn, right, score = "best_codes", curve, items["best_score"]
    items = items.append_column("score", score)
    known = items.filter(pc.is_valid(items[right]))
    rates = known.group_by("action_kind").aggregate([(right, "mean")])
    success = dict(zip(*(column.to_pylist() for column in rates.columns), strict=True))
    wrong = known.filter(pc.invert(known[right]))
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
            "score": shown["score"],
            "action": shown["action"],
            "source_codes": pairs["source_codes"],
            "drawn_codes": shown[drawn],
            "target_codes": pairs["target_codes"],
        }
    )


def failures(shown: pa.Table, frames: Frames) -> list[FailureView]:
    """The rows of `wrong_frames`, drawn."""
    return [
        FailureView(
            kind=row["kind"] or "other",
            success=row["success"],
            score=row["score"],
            action=row["action"],
            source=picture(frames.of(row["source_codes"])),
            drawn=picture(frames.of(row["drawn_codes"])),
            target=picture(frames.of(row["target_codes"])),
        )
        for row in shown.to_pylist()
    ]
