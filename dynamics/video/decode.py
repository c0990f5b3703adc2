"""One clip to its key frames, with FFmpeg in a process of its own.

`read_clip` is the work. Run as a module this file is the worker that `dynamics.video.sandbox`
starts: it takes one JSON request per line on stdin and answers on stdout with a header (two
big-endian uint32: bytes of JSON, bytes of pixels), the JSON, and the pixels.

FFmpeg parses hostile bytes in C. So nothing but local files of four containers is opened (without
the white lists a script named ``x.mp4`` makes FFmpeg read other files), and the process has limits
on memory, processor time, and writing.
"""

import json
import os
import resource
import signal
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import av
import numpy as np
from av.container import InputContainer
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream

from dynamics.video.keyframes import Pair, select_pairs

THUMB_PX = 32
"""Side of the thumbnails on which motion is measured."""
MIN_SIDE_PX, MAX_SIDE_PX = 16, 8192
KEEP_BYTES = 64 * 2**20
"""A clip whose raw frames fit in here is decoded once, a larger one twice."""
MIN_READ_FRACTION = 0.9
"""Less than this share of the frames that the container declares is a damaged clip. Not all,
since edit lists may hide some."""
OPEN_OPTIONS = {
    "protocol_whitelist": "file",
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,avi,matroska,webm",
}
# Without the two flags swscale's area filter is off by up to 65 of 255 at colour edges.
SCALING = Interpolation.AREA | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
HEADER = struct.Struct(">II")


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeSpec:
    """What to take from every clip; the fields of `KeyframeConfig` plus the frame's size."""

    frame_px: int
    top_k: int
    spacing_frames: int
    min_change: float
    max_cut: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipFrames:
    """What a clip gave."""

    frames: np.ndarray
    """uint8 [P, frame_px, frame_px, 3], RGB, centre-cropped: the frames that kept pairs use."""
    indices: tuple[int, ...]
    """Frame index in the clip of each of ``frames``, ascending."""
    times_s: tuple[float, ...]
    pairs: tuple[Pair, ...]
    """Every pair of consecutive picks, rejected ones included."""


class BadClip(Exception):  # noqa: N818 - a verdict on the input, not a failure of ours
    """The clip cannot be used; ``str`` is the detail."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(detail)
        self.reason = reason


def read_clip(path: Path, spec: DecodeSpec) -> ClipFrames:
    """Decode a clip, choose key frames, return those that kept pairs use.

    Raises:
        BadClip: ``unreadable``, ``no_video``, ``frame_size``, ``too_short`` or ``damaged``.
    """
    scan = _scan(path)
    pairs = select_pairs(
        scan.thumbs,
        top_k=spec.top_k,
        spacing_frames=spec.spacing_frames,
        min_change=spec.min_change,
        max_cut=spec.max_cut,
    )
    if not pairs:
        raise BadClip("too_short", f"{len(scan.times_s)} frames give no two picks")
    kept = [pair for pair in pairs if pair.verdict == "kept"]
    indices = sorted({index for pair in kept for index in (pair.first, pair.second)})
    raw = _fetch(path, indices) if scan.raw is None else [scan.raw[index] for index in indices]
    scale = VideoReformatter()
    frames = np.zeros((len(indices), spec.frame_px, spec.frame_px, 3), dtype=np.uint8)
    # Strict: a second pass that gives fewer frames must not leave black ones.
    for number, frame in zip(range(len(indices)), raw, strict=True):
        frames[number] = _square(scale, frame, spec.frame_px)
    return ClipFrames(
        frames=frames,
        indices=tuple(indices),
        times_s=tuple(scan.times_s[index] for index in indices),
        pairs=tuple(pairs),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scan:
    """A whole clip, seen once."""

    thumbs: np.ndarray
    """uint8 [T, THUMB_PX, THUMB_PX, 3]."""
    times_s: list[float]
    raw: list[av.VideoFrame] | None
    """All frames as decoded, or None when they are more than `KEEP_BYTES`."""


def _scan(path: Path) -> _Scan:
    thumbs: list[np.ndarray] = []
    times_s: list[float] = []
    raw: list[av.VideoFrame] | None = []
    scale = VideoReformatter()
    raw_bytes = 0
    with _video(path) as (container, stream):
        declared = stream.frames
        frame_s = float(1 / stream.average_rate) if stream.average_rate else 1.0
        for frame in _frames(container, stream):
            thumbs.append(_square(scale, frame, THUMB_PX))
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


def _square(scale: VideoReformatter, frame: av.VideoFrame, size: int) -> np.ndarray:
    """uint8 [size, size, 3]: upright, the shorter side area-resized to ``size``, centre-cropped."""
    shorter = min(frame.width, frame.height)
    width, height = (round(side * size / shorter) for side in (frame.width, frame.height))
    small = scale.reformat(
        frame,
        width=width,
        height=height,
        format="rgb24",
        src_color_range=frame.color_range,
        interpolation=SCALING,
        threads=1,
    ).to_ndarray()
    top, left = (height - size) // 2, (width - size) // 2
    return np.rot90(small[top : top + size, left : left + size], frame.rotation // 90)


def _detail(error: Exception) -> str:
    # FFmpeg's message without the path, which only says where this machine keeps the clip.
    return str(getattr(error, "strerror", None) or error)[:200]


# The worker.


def main(memory_mb: int) -> None:
    """Answer requests until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get into the replies
    _limit_process(memory_mb)
    _reply(replies, {"ready": True})
    for line in sys.stdin.buffer:
        request = json.loads(line)
        _limit_cpu(request["cpu_s"])
        try:
            clip = read_clip(Path(request["path"]), DecodeSpec(**request["spec"]))
        except BadClip as error:
            _reply(replies, {"reason": error.reason, "detail": str(error)})
        except MemoryError:
            _reply(replies, {"reason": "out_of_memory", "detail": ""})
        # The border of the sandbox: whatever a hostile file makes the bindings raise is a verdict
        # on the file, and the detail says which error it was.
        except Exception as error:
            detail = f"{type(error).__name__}: {error}"[:200]
            _reply(replies, {"reason": "unreadable", "detail": detail})
        else:
            answer = {
                "indices": clip.indices,
                "times_s": clip.times_s,
                "pairs": [asdict(pair) for pair in clip.pairs],
            }
            _reply(replies, answer, clip.frames.tobytes())


def _reply(stream: IO[bytes], answer: dict[str, Any], pixels: bytes = b"") -> None:
    text = json.dumps(answer).encode()
    stream.write(HEADER.pack(len(text), len(pixels)) + text + pixels)
    stream.flush()


def _limit_process(memory_mb: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    statm = Path("/proc/self/statm")
    if statm.exists():  # other systems do not enforce RLIMIT_AS
        used = int(statm.read_text().split()[0]) * resource.getpagesize()
        limit = used + memory_mb * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _limit_cpu(seconds: int) -> None:
    """A clip that spins ends the process even when the parent is gone."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    used = usage.ru_utime + usage.ru_stime
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (int(used) + seconds + 1, hard))


if __name__ == "__main__":
    main(int(sys.argv[1]))
