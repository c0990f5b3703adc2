"""Contact sheet of an ingest: one HTML file that shows what was kept, what was not, and why.

Every clip is a strip of its key frames, the video above and below it the same frames decoded from
their codes, which is all that a model sees. Clips are decoded a second time for it: an ingest keeps
codes, and no pixels. No script and no request, as in the report.

P frames of a clip, N columns of its strip.
"""

import heapq
import io
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import groupby, islice, pairwise
from typing import Any

import numpy as np
from PIL import Image

from dynamics.core.config import PoolConfig
from dynamics.core.images import data_uri
from dynamics.core.places import Place
from dynamics.core.progress import Progress
from dynamics.core.records import stable_hash
from dynamics.data.refusals import way_out
from dynamics.data.video.decode import ClipFrames
from dynamics.data.video.ingest import (
    ClipReader,
    Folder,
    IngestReport,
    RejectedClip,
    clip_reader,
)
from dynamics.data.video.keyframes import Pair
from dynamics.data.video.sandbox import close_decoders
from dynamics.data.video.sources import SOURCES, Clip
from dynamics.models.image_tokenizer import ImageTokenizer
from dynamics.report.page import environment
from dynamics.storage.files import write_bytes
from dynamics.storage.streams import read_ahead

SHOWN_PX = 96
"""Side of a frame on the sheet."""
MOST_CLIPS = 1000
"""Clips on a sheet; of a larger folder those whose names hash lowest."""
_PAGE_CLIPS = 24
_MOST_PAIRS = 7
"""Pairs of a clip that are shown."""
_MOST_NAMES = 500
"""Clips of a reason that are named."""
_SHEET_BYTES, _STRIP_BYTES = 13_000_000, 40_000
"""Strips of a sheet, and at most of one, before base64."""
_QUALITIES = (85, 70, 55, 40, 25, 10)
_BINS, _LEAST, _MOST = 36, 0.0005, 0.5
"""Of the histogram of motion, on a logarithmic scale."""
WORDS = {
    "accepted": "kept",
    "near_copy": "near copy",
    "shot_cut": "shot cut",
    "damaged": "damaged",
}
_MEANINGS = {
    "near_copy": "Too little changes; --min-change sets how much must",
    "shot_cut": "The camera's picture changes as a whole; --max-cut sets how much may",
    "damaged": "Frames between the two cannot be decoded",
}
_CLIP_ADVICE = {
    "too_short": "No two frames are far enough apart; --spacing sets how far they must be",
    "duplicate_clip": "One of them is enough",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PairView:
    """A pair of a strip, or a break between two columns that are no pair."""

    verdict: str = ""
    """Key of `WORDS`; empty for a break."""
    motion: float = 0.0
    changed: int = 0
    """Codes that differ between the two frames."""
    times_s: tuple[float, float] = (0.0, 0.0)

    @property
    def is_blind(self) -> bool:
        """True when the pair is kept though its frames have equal codes."""
        return self.verdict == "accepted" and not self.changed

    @property
    def classes(self) -> str:
        """Names by which the page colours and filters it."""
        return f"{self.verdict} blind" if self.is_blind else self.verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipView:
    """A clip of the sheet."""

    name: str
    clip_class: str
    uri: str
    columns: int
    pairs: Sequence[PairView]
    """Between each two columns."""
    left_out: int
    """Pairs that the strip has no room for."""

    @property
    def classes(self) -> str:
        """What its pairs are."""
        found = (name for pair in self.pairs for name in pair.classes.split())
        return " ".join(dict.fromkeys(found))


def sheet_reader(folder: Folder, pool: PoolConfig, images: ImageTokenizer) -> ClipReader:
    """Reads a clip with the frames of its rejected pairs, and all as they are shown."""
    return replace(clip_reader(folder.keyframes, pool, images), shown_px=SHOWN_PX)


def write_sheet(
    path: Place,
    folder: Folder,
    report: IngestReport,
    read: ClipReader,
    images: ImageTokenizer,
    progress: Progress,
) -> None:
    """Write the contact sheet of a folder.

    Args:
        path: the HTML file.
        folder: what was ingested.
        report: what became of it.
        read: of `sheet_reader`.
        images: encodes and decodes the frames.
        progress: called with the number of finished clips.
    """
    bad = {clip.clip_path for clip in report.rejected_clips}
    found = (one for one in SOURCES[folder.source](folder.root) if isinstance(one, Clip))
    sound = (clip for clip in found if clip.name not in bad)
    drawn = heapq.nsmallest(MOST_CLIPS, sound, key=lambda clip: stable_hash(clip.name))
    chosen = sorted(drawn, key=lambda clip: clip.name)
    budget = min(_STRIP_BYTES, _SHEET_BYTES // max(1, len(chosen)))
    clips: list[ClipView] = []
    pairs: list[PairView] = []
    progress(0, len(chosen), "contact sheet")
    with closing(read_ahead(read.read, chosen, close_decoders)) as contents:
        for number, (clip, content) in enumerate(contents, start=1):
            if isinstance(content.result, ClipFrames):
                view, all_pairs = _clip_view(clip, content.result, images, budget)
                clips.append(view)
                pairs += all_pairs
            progress(number, len(chosen), "contact sheet")
    write_bytes(path, _render(folder, report, clips, pairs, images.num_tokens).encode())


def _clip_view(
    clip: Clip, content: ClipFrames, images: ImageTokenizer, budget: int
) -> tuple[ClipView, list[PairView]]:
    """A clip as it is shown, and all of its pairs."""
    place = {index: row for row, index in enumerate(content.indices)}
    codes_PL = images.encode(content.frames)

    def view(pair: Pair) -> PairView:
        source, target = place[pair.source], place[pair.target]
        return PairView(
            verdict=pair.verdict,
            motion=pair.motion,
            changed=int((codes_PL[source] != codes_PL[target]).sum()),
            times_s=(content.times_s[source], content.times_s[target]),
        )

    views = {pair: view(pair) for pair in content.pairs}
    shown = _shown(content.pairs)
    columns = sorted({index for pair in shown for index in (pair.source, pair.target)})
    ends = {(pair.source, pair.target): views[pair] for pair in shown}
    rows = [place[index] for index in columns]
    uri = _strip(content.shown[rows], images.decode(codes_PL[rows]), budget)
    return ClipView(
        name=clip.name,
        clip_class=clip.clip_class,
        uri=uri,
        columns=len(columns),
        pairs=[ends.get(gap, PairView()) for gap in pairwise(columns)],
        left_out=len(content.pairs) - len(shown),
    ), list(views.values())


def _shown(pairs: Sequence[Pair]) -> list[Pair]:
    """The first pairs of every verdict, as many as a strip has room for, in order."""
    rank: Counter[str] = Counter()
    ranked = []
    for pair in pairs:
        ranked.append((rank[pair.verdict], pair.source, pair))
        rank[pair.verdict] += 1
    return sorted(
        (pair for *_, pair in sorted(ranked, key=lambda one: one[:2])[:_MOST_PAIRS]),
        key=lambda pair: pair.source,
    )


def _strip(shown_NHW3: np.ndarray, decoded_NHW3: np.ndarray, budget: int) -> str:
    """Frames above, decoded ones below, as one picture of at most so many bytes."""
    # Small frames cell by cell, as the tokenizer draws them; large ones smoothly.
    grown = decoded_NHW3.shape[1] < SHOWN_PX
    method = Image.Resampling.NEAREST if grown else Image.Resampling.LANCZOS
    side = (SHOWN_PX, SHOWN_PX)
    decoded = [np.asarray(Image.fromarray(one).resize(side, method)) for one in decoded_NHW3]
    rows = [np.concatenate(list(frames), axis=1) for frames in (shown_NHW3, decoded)]
    picture = Image.fromarray(np.concatenate(rows))
    for quality in _QUALITIES:
        sink = io.BytesIO()
        picture.save(sink, "WEBP", quality=quality, method=4)
        if sink.tell() <= budget:
            break
    return data_uri(sink.getvalue(), "webp")


def _render(
    folder: Folder,
    report: IngestReport,
    clips: Sequence[ClipView],
    pairs: Sequence[PairView],
    num_tokens: int,
) -> str:
    kept = [pair for pair in pairs if pair.verdict == "accepted"]
    present = [name for name in WORDS if any(pair.verdict == name for pair in pairs)]
    blind = sum(pair.is_blind for pair in kept)
    return (
        environment()
        .get_template("sheet.html.j2")
        .render(
            root=str(folder.root),
            report=report,
            rejects={
                reason: report.rejects[f"pair/{reason}"]
                for reason in WORDS
                if report.rejects[f"pair/{reason}"]
            },
            clips=clips,
            pages=[
                clips[start : start + _PAGE_CLIPS] for start in range(0, len(clips), _PAGE_CLIPS)
            ],
            num_kept=len(kept),
            blind=blind,
            filters={name: WORDS[name] for name in present}
            | ({"blind": "same codes"} if blind else {}),
            words=WORDS,
            meanings=_MEANINGS,
            histogram=_histogram(pairs),
            min_change=_bin_of(folder.keyframes.min_change),
            keyframes=folder.keyframes,
            num_tokens=num_tokens,
            sampled=len(clips) == MOST_CLIPS < report.num_read,
            rejected=list(_by_reason(report.rejected_clips)),
        )
    )


def _bin_of(motion: float) -> float:
    """Place of a motion among the histogram's bins."""
    share = math.log(max(motion, _LEAST) / _LEAST) / math.log(_MOST / _LEAST)
    return min(max(share, 0.0), 1.0) * _BINS


def _histogram(pairs: Sequence[PairView]) -> list[dict[str, Any]]:
    """Rectangles of a histogram of motion, stacked by verdict, in a box of height 100."""
    bins = [Counter[str]() for _ in range(_BINS)]
    for pair in pairs:
        bins[min(int(_bin_of(pair.motion)), _BINS - 1)][pair.verdict] += 1
    highest = max((one.total() for one in bins), default=0) or 1
    drawn = []
    for place, counts in enumerate(bins):
        top = 100.0
        for verdict in WORDS:
            height = 100 * counts[verdict] / highest
            top -= height
            if height:
                note = f"{counts[verdict]} {WORDS[verdict]}"
                drawn.append(
                    {"x": place, "y": top, "height": height, "verdict": verdict, "note": note}
                )
    return drawn


def _by_reason(rejected: Sequence[RejectedClip]) -> Iterator[dict[str, Any]]:
    """Rejected clips by reason, with what to do."""
    for reason, group in groupby(sorted(rejected, key=lambda one: one.reason), lambda o: o.reason):
        found = list(group)
        yield {
            "reason": reason,
            "advice": way_out(reason).removeprefix(": ") or _CLIP_ADVICE.get(reason, ""),
            "count": len(found),
            "clips": list(islice(found, _MOST_NAMES)),
        }
