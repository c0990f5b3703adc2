"""One clip to its key frames, or to the two ends of a segment.

FFmpeg parses hostile bytes in C. So nothing but the one file, of the usual containers, is read
(without the white lists a script named ``x.mp4`` makes FFmpeg read other files), and all of this
runs in the sealed process of `dynamics.data.video.worker`, which is handed the open file.
"""

import math
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.sidedata.sidedata import SideData
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream

from dynamics.core.pointers import HEAD_BYTES, pointer_kind
from dynamics.data.video.keyframes import Pair, select_pairs

THUMB_PX = 32
"""Side of the thumbnails on which motion is measured."""
MIN_SIDE_PX, MAX_SIDE_PX = 16, 8192
KEEP_BYTES = 64 * 2**20
"""Clips whose raw frames fit in it are decoded once, larger ones twice."""
MIN_SHOWN_FRACTION = 0.9
"""Share of its declared length that a whole video shows at least, when its last frame is wanted."""
MIN_BYTES_PER_S = 500
"""Fewest bytes of a second of film: a header cannot claim more seconds than the file has room for.
"""
MAX_CLIP_BYTES = 128 * 2**20
"""Key frames of a clip are at most about so many bytes; long clips have fewer a minute then."""
MAX_STRETCH = 10.0
"""Pixel aspects beyond it are no aspects."""
OPEN_OPTIONS = {
    "protocol_whitelist": "fd",
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,avi,matroska,webm,mpegts,mpeg,flv",
}
# Without the two flags swscale's area filter is off by up to 65 of 255 at colour edges.
SCALING = Interpolation.AREA | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
Video = Path | int
"""A video's path, or the descriptor of its open file."""
Bars = tuple[int, int, int] | None
"""RGB of the bars that make a picture square; None = cut out its middle. The model's rule
(`dynamics.models.image_tokenizer.ImageTokenizer`)."""
MAX_LEAP_S = 30 * 3600.0
"""A frame that is so much later than the one before has a damaged time; FFmpeg's own bound."""
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
    per_minute: float = 0.0
    bars: Bars = None

    def most_frames(self, film_s: float) -> int:
        """Most key frames of a clip of some length."""
        wanted = max(self.top_k, math.ceil(self.per_minute * film_s / 60))
        return max(self.top_k, min(wanted, MAX_CLIP_BYTES // (3 * self.frame_px**2)))


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipFrames:
    """The key frames of a clip."""

    frames: np.ndarray
    """uint8 [P, frame_px, frame_px, 3], RGB: the frames that accepted pairs use; those of all pairs
    where ``shown`` is wanted."""
    shown: np.ndarray
    """uint8 [P, shown_px, shown_px, 3]: the same for people to look at, [0, 0, 0, 3] when they are
    not wanted."""
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


def read_clip(path: Video, spec: DecodeSpec, shown_px: int = 0) -> ClipFrames:
    """Decode a clip, choose key frames, return those that accepted pairs use.

    With ``shown_px`` the frames of rejected pairs are returned, too, and all of them a second time
    with this side.

    Raises:
        BadClip: ``unreadable``, ``no_video``, ``frame_size``, ``too_short`` or ``damaged``.
    """
    scan = _scan(path, spec.bars)
    pairs = select_pairs(
        scan.thumbs,
        top_k=spec.most_frames(scan.times_s[-1]),
        spacing_frames=spec.spacing_frames,
        min_change=spec.min_change,
        max_cut=spec.max_cut,
        gaps=scan.gaps,
    )
    if not pairs:
        detail = f"of {len(scan.times_s)} frames no two are {spec.spacing_frames} apart"
        raise BadClip("too_short", detail)
    indices = sorted(used_frames(pairs, rejected=shown_px > 0))
    raw = _fetch(path, indices) if scan.raw is None else [scan.raw[index] for index in indices]
    scale = VideoReformatter()
    frames = np.zeros((len(indices), spec.frame_px, spec.frame_px, 3), dtype=np.uint8)
    shown = np.zeros((len(indices) if shown_px else 0, shown_px, shown_px, 3), dtype=np.uint8)
    # Strict: a second pass that gives fewer frames must not leave black ones.
    for number, frame in zip(range(len(indices)), raw, strict=True):
        frames[number] = square(scale, frame.image, spec.frame_px, spec.bars, frame.stretch)
        if shown_px:
            shown[number] = square(scale, frame.image, shown_px, spec.bars, frame.stretch)
    return ClipFrames(
        frames=frames,
        shown=shown,
        indices=tuple(indices),
        times_s=tuple(scan.times_s[index] for index in indices),
        pairs=tuple(pairs),
    )


def used_frames(pairs: Iterable[Pair], *, rejected: bool) -> set[int]:
    """Indices of the frames of the accepted pairs, or of all."""
    used = (pair for pair in pairs if rejected or pair.verdict == "accepted")
    return {index for pair in used for index in (pair.source, pair.target)}


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
    path: Video, span_s: tuple[float, float] | None, frame_px: int, bars: Bars = None
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
        frames=np.stack(
            [square(scale, shown.image, frame_px, bars, shown.stretch) for shown in (first, last)]
        ),
        indices=(found[0][0], found[1][0]),
        times_s=(first_s, last_s),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Film:
    """A part of a clip for people to look at, in its own shape."""

    frames: np.ndarray
    """uint8 [N, h, w, 3], RGB, small."""
    times_s: tuple[float, ...]
    """Of ``frames``."""
    ends: np.ndarray
    """uint8 [2, H, W, 3]: the frames of a pair, large."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FilmSpec:
    """A part of a clip: which frames, and how large."""

    indices: tuple[int, ...]
    """Frames of the film, ascending; those beyond the clip's end are left out."""
    ends: tuple[int, int]
    """Frames of the pair; two of ``indices``."""
    px: int = 320
    """Longer side of a frame of the film, at most."""
    ends_px: int = 512
    """Shorter side of the pair's frames, at most; the longer one has four times as many."""

    @property
    def largest(self) -> int:
        """Bytes of its pixels, at most."""
        return 3 * (len(self.indices) * self.px**2 + 8 * self.ends_px**2)


def read_film(path: Video, spec: FilmSpec) -> Film:
    """A part of a clip.

    Raises:
        BadClip: as `read_clip`; ``damaged`` when a frame of the pair is not there.
    """
    found = dict(zip(spec.indices, _fetch(path, spec.indices), strict=False))
    if not found.keys() >= set(spec.ends):
        raise BadClip("damaged", f"the clip has no frames {spec.ends[0]} and {spec.ends[1]} now")
    first = found[spec.ends[0]]
    width, height = first.image.width * first.stretch, first.image.height
    small = min(1.0, spec.px / max(width, height))
    large = min(1.0, spec.ends_px / min(width, height), 4 * spec.ends_px / max(width, height))
    scale = VideoReformatter()

    def scaled(shown: _Shown, factor: float) -> np.ndarray:
        # All in the shape of the first: a stream may change its size.
        sides = max(1, round(width * factor)), max(1, round(height * factor))
        return _turned(_resized(scale, shown.image, *sides), shown.image)

    return Film(
        frames=np.stack([scaled(shown, small) for shown in found.values()]),
        times_s=tuple(shown.time_s for shown in found.values()),
        ends=np.stack([scaled(found[index], large) for index in spec.ends]),
    )


@dataclass(frozen=True, slots=True)
class _Shown:
    """A frame that a player shows."""

    image: av.VideoFrame
    time_s: float
    """Seconds since the clip's first frame; they grow."""
    after_gap: bool
    """True when what comes before it is damaged."""
    stretch: float
    """Width of a pixel over its height."""


_Found = tuple[int, _Shown, float]
"""Frame number, frame, seconds from the beginning."""


def _whole(path: Video) -> list[_Found]:
    first: _Shown | None = None
    last: _Shown | None = None
    count = 0
    with _video(path) as (container, stream):
        declared_s = _declared_s(container, stream)
        for frame in _frames(container, stream):
            first, last, count = first or frame, frame, count + 1
    if first is None or last is None or count < 2:
        raise BadClip("too_short", f"frames: {count}")
    shown_s = last.time_s * count / (count - 1)
    if declared_s is not None and shown_s < declared_s * MIN_SHOWN_FRACTION:
        raise BadClip("damaged", f"{shown_s:.2f} of {declared_s:.2f} s can be read")
    return [(0, first, first.time_s), (count - 1, last, last.time_s)]


def _declared_s(container: InputContainer, stream: VideoStream) -> float | None:
    """The video's length by its header; None when that speaks of sound, too."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    alone = len(container.streams) == 1 and container.duration
    return container.duration / av.time_base if alone and container.duration else None


def film_s(path: Video) -> float:
    """Seconds of film in a file: what its header says, or the most that there is room for.

    Raises:
        BadClip: as `read_clip`.
    """
    with _video(path) as (container, _):
        most_s = os.stat(path).st_size / MIN_BYTES_PER_S
        return min(most_s, (container.duration or math.inf) / av.time_base)


def _shown_at(path: Video, moment_s: float) -> _Found:
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


def _newest(path: Video, moment_s: float, *, seeks: bool) -> _Found | None:
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
            time_s = frame.time_s
            if seeks:  # the frame's own clock begins where it was led to
                if frame.image.time is None:
                    continue
                time_s = frame.image.time - start_s
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
    gaps: list[int]
    """The first frames after damaged ones."""
    raw: list[_Shown] | None
    """All frames as decoded, or None when they are more than `KEEP_BYTES`."""


def _scan(path: Video, bars: Bars) -> _Scan:
    thumbs = bytearray()  # of hours of film: a list of arrays would be copied into one
    times_s: list[float] = []
    gaps: list[int] = []
    raw: list[_Shown] | None = []
    scale = VideoReformatter()
    raw_bytes = 0
    with _video(path) as (container, stream):
        for frame in _frames(container, stream):
            if frame.after_gap:
                gaps.append(len(times_s))
            thumbs += square(scale, frame.image, THUMB_PX, bars, frame.stretch).tobytes()
            times_s.append(frame.time_s)
            raw_bytes += sum(plane.buffer_size for plane in frame.image.planes)
            if raw is not None:
                raw.append(frame)
            if raw_bytes > KEEP_BYTES:
                raw = None
    if len(times_s) < 2:
        raise BadClip("too_short", f"frames: {len(times_s)}")
    shape = (len(times_s), THUMB_PX, THUMB_PX, 3)
    pixels = np.frombuffer(thumbs, np.uint8).reshape(shape)
    return _Scan(thumbs=pixels, times_s=times_s, gaps=gaps, raw=raw)


def _fetch(path: Video, indices: Sequence[int]) -> Iterator[_Shown]:
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
def _video(path: Video) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The track that a player shows, open for one-threaded (repeatable) decoding."""
    descriptor = path if isinstance(path, int) else _opened(path)
    try:
        os.lseek(descriptor, 0, os.SEEK_SET)  # where an earlier pass has stopped
        options = OPEN_OPTIONS | {"fd": str(descriptor)}
        container = av.open("fd:", container_options=options, metadata_errors="replace")
    except MemoryError:  # FFmpeg's own is one of its errors, too
        raise
    except (av.FFmpegError, ValueError, OSError) as error:
        head = os.pread(descriptor, HEAD_BYTES, 0)
        raise BadClip(pointer_kind(head) or "unreadable", _unopened(error, head)) from error
    finally:
        if not isinstance(path, int):
            os.close(descriptor)  # FFmpeg reads from a copy of it
    with container:
        stream = container.streams.best("video")
        if not isinstance(stream, VideoStream):
            raise BadClip("no_video")
        stream.thread_type = "NONE"
        stream.thread_count = 1
        yield container, stream


def _unopened(error: Exception, head: bytes) -> str:
    """What to say of a file that FFmpeg does not open."""
    if not head:
        return "an empty file"
    if head[4:8] == b"ftyp":
        return "an mp4 or mov without its index (moov): a recording or download that did not end"
    return f"{_detail(error)}; it begins with {head[:16]!r}"


def _opened(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY)
    except OSError as error:
        raise BadClip("unreadable", _detail(error)) from error


def _frames(container: InputContainer, stream: VideoStream) -> Iterator[_Shown]:
    """The sound frames of a track, in the order in which they are shown.

    A packet that cannot be decoded, or a frame marked corrupt, spoils what follows up to the next
    key frame: later frames are drawn on top of it.

    Raises:
        BadClip: ``frame_size``, or ``damaged``: there is no sound frame.
    """
    clock, stretch = _Clock(stream), _stretch(stream)
    spoilt, after_gap, some, problem = False, False, False, ""
    try:
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except MemoryError:
                raise
            except av.FFmpegError as error:
                frames, spoilt, problem = [], True, _detail(error)
            for frame in frames:
                sides = (frame.width, frame.height)
                if not all(MIN_SIDE_PX <= side <= MAX_SIDE_PX for side in sides):
                    raise BadClip("frame_size", f"{frame.width}x{frame.height}")
                spoilt = frame.is_corrupt or (spoilt and not frame.key_frame)
                if not spoilt:
                    yield _Shown(frame, clock.time_s(frame), after_gap, stretch)
                    some = True
                after_gap = spoilt
    except MemoryError:
        raise
    except av.FFmpegError as error:  # what the container has from here on is lost
        problem = _detail(error)
    if not some and (spoilt or problem):
        raise BadClip("damaged", problem or "all frames are marked corrupt")


class _Clock:
    """Seconds since the first frame; they grow, whatever the container says."""

    def __init__(self, stream: VideoStream) -> None:
        # Some containers carry no times, or none before zero: then the nominal rate gives them.
        self._frame_s = float(1 / stream.average_rate) if stream.average_rate else 1.0
        self._start_s: float | None = None
        self._last_s = -self._frame_s

    def time_s(self, frame: av.VideoFrame) -> float:
        """The time of the next frame."""
        next_s = self._last_s + self._frame_s
        if frame.time is None:
            self._last_s = next_s
            return next_s
        start_s = frame.time - next_s if self._start_s is None else self._start_s
        if not 0 < frame.time - start_s - self._last_s < MAX_LEAP_S:
            start_s = frame.time - next_s
        self._start_s, self._last_s = start_s, frame.time - start_s
        return self._last_s


def _stretch(stream: VideoStream) -> float:
    aspect = float(stream.sample_aspect_ratio or 1)
    return aspect if 1 / MAX_STRETCH <= aspect <= MAX_STRETCH else 1.0


def square(
    scale: VideoReformatter,
    frame: av.VideoFrame,
    size: int,
    bars: Bars = None,
    stretch: float = 1.0,
) -> np.ndarray:
    """uint8 [size, size, 3], as a player turns and stretches it, area-resized, squared by ``bars``.

    ``stretch`` is the width of a pixel over its height.
    """
    sides = (frame.width * stretch, frame.height)
    fitted = (min if bars is None else max)(sides)
    # A very long picture keeps at least a line.
    width, height = (max(1, round(side * size / fitted)) for side in sides)
    small = _resized(scale, frame, width, height)
    top, left = abs(height - size) // 2, abs(width - size) // 2
    if bars is None:
        squared = small[top : top + size, left : left + size]
    else:
        squared = np.full((size, size, 3), bars, dtype=np.uint8)
        squared[top : top + height, left : left + width] = small
    return _turned(squared, frame)


def _resized(scale: VideoReformatter, frame: av.VideoFrame, width: int, height: int) -> np.ndarray:
    return scale.reformat(
        frame,
        width=width,
        height=height,
        format="rgb24",
        src_color_range=frame.color_range,
        interpolation=SCALING,
        threads=1,
    ).to_ndarray()


def _turned(picture_HW3: np.ndarray, frame: av.VideoFrame) -> np.ndarray:
    """A picture by the nearest of the eight quarter turns and mirrors of the display matrix.

    The matrix sends (x, y) to (a x + c y, b x + d y), y downwards.
    """
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if not isinstance(matrix, SideData):
        return picture_HW3
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(matrix))
    if abs(a) + abs(d) < abs(b) + abs(c):
        picture_HW3, a, d = picture_HW3.swapaxes(0, 1), c, b
    return picture_HW3[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def _detail(error: Exception) -> str:
    # FFmpeg's message without the path, which only says where this machine keeps the clip.
    return str(getattr(error, "strerror", None) or error)[:200]
