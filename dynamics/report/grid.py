"""Sample grids: generated frames next to the true ones, for MLflow and the page."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image, ImageDraw, ImageFont

from dynamics.core.images import encode_png
from dynamics.core.places import Place
from dynamics.models.image_tokenizer import ImageTokenizer
from dynamics.report.pictures import Frames
from dynamics.storage.files import write_bytes

_SIDE = 128
"""Approximate side of a shown frame, in pixels; the scale is a whole number, for sharp cells."""
_PAD, _HEADER, _GUTTER, _TEXT = 12, 34, 30, 170
_INK, _FAINT, _PAPER, _RULE = (28, 32, 38), (104, 112, 122), (250, 250, 248), (226, 227, 224)
_GREEN, _RED = (31, 138, 80), (201, 60, 55)


@dataclass(frozen=True, slots=True, kw_only=True)
class GridRow:
    """One held-out scene. Frames are uint8 [H, W, 3]."""

    pair_id: str
    source: np.ndarray
    action: str
    greedy: np.ndarray
    greedy_correct: bool | None
    best: np.ndarray | None
    best_correct: bool | None
    target: np.ndarray


def shown_scenes(items: pa.Table, heldout: pa.Table, num_rows: int = 8) -> pa.Table:
    """The first scenes with best of N: the same ones every round, good or bad.

    All frames are codes, also source and target: the models see no more.

    Args:
        items: the evaluation table (`evaluation.heldout.results_schema`).
        heldout: TRANSITION_SCHEMA with the same pairs, any order.
        num_rows: most rows.
    """
    with_best = items.filter(pc.is_valid(items["best_codes"]))
    shown = (with_best if with_best.num_rows else items).slice(0, num_rows)
    where = pc.index_in(shown["pair_id"], value_set=heldout["pair_id"].combine_chunks())
    pairs = heldout.take(where)
    sizes = [int(name.rsplit("_", 1)[1]) for name in items.column_names if _is_best_of(name)]
    best = shown[f"best_of_{max(sizes)}"] if sizes else pa.nulls(shown.num_rows, pa.bool_())
    return pa.table(
        {
            "pair_id": shown["pair_id"],
            "source_codes": pairs["source_codes"],
            "action": shown["action"],
            "greedy_codes": shown["greedy_codes"],
            "greedy_correct": shown["fdp_greedy_success"],
            "best_codes": shown["best_codes"],
            "best_correct": best,
            "target_codes": pairs["target_codes"],
        }
    )


def grid_rows(shown: pa.Table, frames: Frames) -> list[GridRow]:
    """The rows of `shown_scenes`, drawn."""
    return [
        GridRow(
            pair_id=row["pair_id"],
            source=frames.of(row["source_codes"]),
            action=row["action"],
            greedy=frames.of(row["greedy_codes"]),
            greedy_correct=row["greedy_correct"],
            best=None if row["best_codes"] is None else frames.of(row["best_codes"]),
            best_correct=row["best_correct"],
            target=frames.of(row["target_codes"]),
        )
        for row in shown.to_pylist()
    ]


def _is_best_of(name: str) -> bool:
    prefix, _, size = name.rpartition("_")
    return prefix == "best_of" and size.isdigit()


def draw_grid(rows: Sequence[GridRow]) -> bytes:
    """The grid as PNG: before, action, greedy, best of N, truth.

    A tick or a cross beside a generated frame is the oracle's verdict.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("a sample grid needs at least one row")
    scale = max(1, round(_SIDE / len(rows[0].source)))
    side = scale * len(rows[0].source)
    lefts = _columns(side)
    size = (lefts["end"], _HEADER + len(rows) * (side + _PAD))
    canvas = Image.new("RGB", size, _PAPER)
    pen = ImageDraw.Draw(canvas)
    for heading, left in lefts.items():
        if heading != "end":
            pen.text((left, _PAD), heading, fill=_FAINT, font=_font(13))
    for number, row in enumerate(rows):
        top = _HEADER + number * (side + _PAD)
        _text(pen, row.action, (lefts["action"], top), side)
        frames = {
            "before": (row.source, None),
            "greedy": (row.greedy, row.greedy_correct),
            "best of N": (row.best, row.best_correct),
            "truth": (row.target, None),
        }
        for heading, (frame, correct) in frames.items():
            _frame(canvas, frame, (lefts[heading], top), side)
            if correct is not None:
                _mark(pen, correct, (lefts[heading] + side + _GUTTER // 2, top + side // 2))
    return encode_png(canvas, compress_level=9)


def write_grid(
    path: Place, items: pa.Table, heldout: pa.Table, images: ImageTokenizer, num_rows: int = 8
) -> None:
    """Write the round's grid as PNG, atomically; equal tables give equal bytes."""
    shown = shown_scenes(items, heldout, num_rows)
    write_bytes(path, draw_grid(grid_rows(shown, Frames(images, [shown]))))


def _columns(side: int) -> dict[str, int]:
    """Left edge of every column, and of the picture's end."""
    widths = {
        "before": side + _PAD,
        "action": _TEXT + _PAD,
        "greedy": side + _GUTTER,
        "best of N": side + _GUTTER,
        "truth": side + _PAD,
    }
    lefts, left = {}, _PAD
    for heading, width in widths.items():
        lefts[heading] = left
        left += width
    return lefts | {"end": left}


def _frame(
    canvas: Image.Image, frame_HW3: np.ndarray | None, corner: tuple[int, int], side: int
) -> None:
    if frame_HW3 is None:
        box = (*corner, corner[0] + side - 1, corner[1] + side - 1)
        ImageDraw.Draw(canvas).rectangle(box, outline=_RULE)
        return
    # Nearest: smoothing would invent pixels that no model drew.
    shown = Image.fromarray(frame_HW3).resize((side, side), Image.Resampling.NEAREST)
    canvas.paste(shown, corner)


def _text(pen: ImageDraw.ImageDraw, sentence: str, corner: tuple[int, int], side: int) -> None:
    font, lines = _font(16), [""]
    for word in sentence.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and pen.textlength(longer, font=font) > _TEXT:
            lines.append(word)
        else:
            lines[-1] = longer
    top = corner[1] + (side - 22 * len(lines)) // 2
    pen.multiline_text((corner[0], top), "\n".join(lines), fill=_INK, font=font, spacing=6)


def _mark(pen: ImageDraw.ImageDraw, correct: bool, centre: tuple[int, int]) -> None:
    """A tick or a cross, told apart by shape as well as by colour."""
    x, y = centre
    if correct:
        pen.line([(x - 8, y), (x - 2, y + 6), (x + 8, y - 7)], fill=_GREEN, width=4, joint="curve")
        return
    pen.line([(x - 6, y - 6), (x + 6, y + 6)], fill=_RED, width=4)
    pen.line([(x - 6, y + 6), (x + 6, y - 6)], fill=_RED, width=4)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
