"""One clip to its key frames, or to the two ends of a segment.

FFmpeg parses hostile bytes in C. So nothing but local files of four containers is opened (without
the white lists a script named ``x.mp4`` makes FFmpeg read other files), and all of this runs in
the limited process of `dynamics.data.video.worker`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream

from dynamics.data.video.keyframes import Pair, select_pairs

THUMB_PX = 32
"""Side of the thumbnails on which motion is measured."""
MIN_SIDE_PX, MAX_SIDE_PX = 16, 8192
KEEP_BYTES = 64 * 2**20
"""Clips whose raw frames fit in it are decoded once, larger ones twice."""
MIN_READ_FRACTION = 0.9
"""Share of the declared frames that a sound clip gives at least; edit lists may hide some."""
OPEN_OPTIONS = {
    "protocol_whitelist": "file",
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,avi,matroska,webm",
}
# Without the two flags swscale's area filter is off by up to 65 of 255 at colour edges.
SCALING = Interpolation.AREA | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
Bars = tuple[int, int, int] | None
"""RGB of the bars that make a picture square; None = cut out its middle. The model's rule
(`dynamics.models.image_tokenizer.ImageTokenizer`)."""
SLACK_S = 1.0
"""A segment may end this much after its video's last frame: annotations are made by hand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeSpec:
    """Settings for every clip: the fields of `KeyframeConfig` and the model's frame."""

    frame_px: int
    top_k: int
    spacing_frames: int
    min_change: float
    max_cut: float
    bars: Bars = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipFrames:
    """The key frames of a clip."""

    frames: np.ndarray
    """uint8 [P, frame_px, frame_px, 3], RGB: the frames that accepted pairs use."""
    indices: tuple[int, ...]
    """Frame index in the clip of each of ``frames``, ascending."""
    times_s: tuple[float, ...]
    pairs: tuple[Pair, ...]
    """Every pair of consecutive picks, rejected ones included."""


class BadClip(Exception):  # noqa: N818 - a verdict on the input, not a failure of ours
    """A clip that cannot be used; ``str`` is the detail."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(detail)
        self.reason = reason


def read_clip(path: Path, spec: DecodeSpec) -> ClipFrames:
    """Decode a clip, choose key frames, return those that accepted pairs use.

    Raises:
        BadClip: ``unreadable``, ``no_video``, ``frame_size``, ``too_short`` or ``damaged``.
    """
    scan = _scan(path, spec.bars)
    pairs = select_pairs(
        scan.thumbs,
        top_k=spec.top_k,
        spacing_frames=spec.spacing_frames,
        min_change=spec.min_change,
        max_cut=spec.max_cut,
    )
    if not pairs:
        raise BadClip("too_short", f"{len(scan.times_s)} frames give no two picks")
    accepted = [pair for pair in pairs if pair.verdict == "accepted"]
    indices = sorted({index for pair in accepted for index in (pair.source, pair.target)})
    raw = _fetch(path, indices) if scan.raw is None else [scan.raw[index] for index in indices]
    scale = VideoReformatter()
    frames = np.zeros((len(indices), spec.frame_px, spec.frame_px, 3), dtype=np.uint8)
    # Strict: a second pass that gives fewer frames must not leave black ones.
    for number, frame in zip(range(len(indices)), raw, strict=True):
        frames[number] = square(scale, frame, spec.frame_px, spec.bars)
    return ClipFrames(
        frames=frames,
        indices=tuple(indices),
        times_s=tuple(scan.times_s[index] for index in indices),
        pairs=tuple(pairs),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """The two frames of a labelled pair."""

    frames: np.ndarray
    """uint8 [2, frame_px, frame_px, 3], RGB."""
    indices: tuple[int, int] = (0, 1)
    """Frame numbers in the video, from its nominal rate; 0 and 1 of two pictures."""
    times_s: tuple[float, float] = (0.0, 0.0)
    """Seconds from the video's beginning; 0 for pictures, which have no times."""


def read_ends(
    path: Path, span_s: tuple[float, float] | None, frame_px: int, bars: Bars = None
) -> Ends:
    """The first and the last frame of a segment, or of the whole video.

    Args:
        path: the video.
        span_s: the segment, seconds; None is the whole video.
        frame_px: side of the frames.
        bars: see `Bars`.

    Raises:
        BadClip: as `read_clip`, ``empty_segment`` or ``past_the_end``.
    """
    if span_s is not None and not 0 <= span_s[0] < span_s[1]:
        raise BadClip("empty_segment", f"{span_s[0]} s to {span_s[1]} s")
    found = _whole(path) if span_s is None else [_shown_at(path, moment) for moment in span_s]
    scale = VideoReformatter()
    (_, first, first_s), (_, last, last_s) = found
    return Ends(
        frames=np.stack([square(scale, frame, frame_px, bars) for frame in (first, last)]),
        indices=(found[0][0], found[1][0]),
        times_s=(first_s, last_s),
    )


_Found = tuple[int, av.VideoFrame, float]
"""Frame number, frame, seconds from the beginning."""


def _whole(path: Path) -> list[_Found]:
    first: av.VideoFrame | None = None
    last: av.VideoFrame | None = None
    count = 0
    with _video(path) as (container, stream):
        declared, rate = stream.frames, float(stream.average_rate or 1)
        for frame in _frames(container, stream):
            first, last, count = first or frame, frame, count + 1
    if count < declared * MIN_READ_FRACTION:
        raise BadClip("damaged", f"{count} of {declared} frames can be read")
    if first is None or last is None or count < 2:
        raise BadClip("too_short", f"{count} frames")
    return [(0, first, 0.0), (count - 1, last, (count - 1) / rate)]


def _shown_at(path: Path, moment_s: float) -> _Found:
    """The frame that a player shows at a moment: the newest one that is not later."""
    # A damaged index may lead past the moment: then from the beginning.
    for seeks in (True, False):
        if (found := _newest(path, moment_s, seeks=seeks)) is not None:
            break
    else:
        raise BadClip("damaged", f"no frame at {moment_s} s")
    if found[2] < moment_s - SLACK_S:
        raise BadClip("past_the_end", f"its last frame is at {found[2]:.2f} s, not {moment_s} s")
    return found


def _newest(path: Path, moment_s: float, *, seeks: bool) -> _Found | None:
    with _video(path) as (container, stream):
        rate, base_s = float(stream.average_rate or 1), float(stream.time_base or 0)
        start_s = (stream.start_time or 0) * base_s
        if seeks and base_s:
            try:  # to the last key frame that is not later
                container.seek(round((start_s + moment_s) / base_s), stream=stream)
            except av.FFmpegError as error:
                raise BadClip("damaged", _detail(error)) from error
        found: _Found | None = None
        for frame in _frames(container, stream):
            if frame.time is None:
                raise BadClip("no_times", "its frames carry no times")
            time_s = frame.time - start_s
            if time_s > moment_s + 0.5 / rate:
                break
            found = (round(time_s * rate), frame, time_s)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scan:
    """A whole clip after one pass over it."""

    thumbs: np.ndarray
    """uint8 [T, THUMB_PX, THUMB_PX, 3]."""
    times_s: list[float]
    raw: list[av.VideoFrame] | None
    """All frames as decoded, or None when they are more than `KEEP_BYTES`."""


def _scan(path: Path, bars: Bars) -> _Scan:
    thumbs: list[np.ndarray] = []
    times_s: list[float] = []
    raw: list[av.VideoFrame] | None = []
    scale = VideoReformatter()
    raw_bytes = 0
    with _video(path) as (container, stream):
        declared = stream.frames
        frame_s = float(1 / stream.average_rate) if stream.average_rate else 1.0
        for frame in _frames(container, stream):
            thumbs.append(square(scale, frame, THUMB_PX, bars))
            # Some containers carry no times: then the nominal rate gives them.
            times_s.append(len(times_s) * frame_s if frame.time is None else frame.time)
            raw_bytes += sum(plane.buffer_size for plane in frame.planes)
            if raw is not None:
                raw.append(frame)
            if raw_bytes > KEEP_BYTES:
                raw = None
    if len(thumbs) < declared * MIN_READ_FRACTION:
        raise BadClip("damaged", f"{len(thumbs)} of {declared} frames can be read")
    if len(thumbs) < 2:
        raise BadClip("too_short", f"{len(thumbs)} frames")
    return _Scan(thumbs=np.stack(thumbs), times_s=times_s, raw=raw)


def _fetch(path: Path, indices: Sequence[int]) -> Iterator[av.VideoFrame]:
    """The frames at ascending indices, by decoding up to the last: seeking is not frame-exact."""
    wanted = set(indices)
    if not wanted:
        return
    with _video(path) as (container, stream):
        for index, frame in enumerate(_frames(container, stream)):
            if index in wanted:
                yield frame
                if index == indices[-1]:
                    return


@contextmanager
def _video(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The clip's first video stream, open for one-threaded (repeatable) decoding."""
    try:
        container = av.open(
            f"file:{path}", container_options=OPEN_OPTIONS, metadata_errors="replace"
        )
    except MemoryError:  # FFmpeg's own is one of its errors, too
        raise
    except (av.FFmpegError, ValueError) as error:
        raise BadClip("unreadable", _detail(error)) from error
    with container:
        if not container.streams.video:
            raise BadClip("no_video")
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        stream.thread_count = 1
        yield container, stream


def _frames(container: InputContainer, stream: VideoStream) -> Iterator[av.VideoFrame]:
    try:
        for frame in container.decode(stream):
            if not all(MIN_SIDE_PX <= side <= MAX_SIDE_PX for side in (frame.width, frame.height)):
                raise BadClip("frame_size", f"{frame.width}x{frame.height}")
            if frame.is_corrupt:
                raise BadClip("damaged", "a frame is marked corrupt")
            yield frame
    except MemoryError:
        raise
    except av.FFmpegError as error:
        raise BadClip("damaged", _detail(error)) from error


def square(
    scale: VideoReformatter, frame: av.VideoFrame, size: int, bars: Bars = None
) -> np.ndarray:
    """uint8 [size, size, 3], upright, area-resized, squared as ``bars`` says."""
    fitted = (min if bars is None else max)(frame.width, frame.height)
    # A very long picture keeps at least a line.
    width, height = (max(1, round(side * size / fitted)) for side in (frame.width, frame.height))
    small = scale.reformat(
        frame,
        width=width,
        height=height,
        format="rgb24",
        src_color_range=frame.color_range,
        interpolation=SCALING,
        threads=1,
    ).to_ndarray()
    top, left = abs(height - size) // 2, abs(width - size) // 2
    if bars is None:
        squared = small[top : top + size, left : left + size]
    else:
        squared = np.full((size, size, 3), bars, dtype=np.uint8)
        squared[top : top + height, left : left + width] = small
    return np.rot90(squared, frame.rotation // 90)


def _detail(error: Exception) -> str:
    # FFmpeg's message without the path, which only says where this machine keeps the clip.
    return str(getattr(error, "strerror", None) or error)[:200]
