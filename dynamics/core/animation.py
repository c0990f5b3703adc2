"""Animations: frames shown one after the other, as GIF or MP4."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

FORMATS = ("gif", "mp4")
_LEAST_SIDE = 256
"""Frames are enlarged to at least so many pixels: the default's have 32."""


def animation(frames: Sequence[Image.Image], kind: str, *, seconds: float = 1.0) -> bytes:
    """The frames as a film, enlarged without smoothing; equal frames give equal bytes.

    Args:
        frames: RGB, of one size.
        kind: ``gif``, which begins anew at its end, or ``mp4``.
        seconds: time that each frame stays.
    """
    scale = -(-_LEAST_SIDE // min(frames[0].size))
    # H.264 wants even sides.
    size = tuple(2 * -(-scale * side // 2) for side in frames[0].size)
    large = [frame.resize((size[0], size[1]), Image.Resampling.NEAREST) for frame in frames]
    return gif(large, seconds) if kind == "gif" else _mp4(large, seconds)


def gif(frames: Sequence[Image.Image], seconds: float) -> bytes:
    """The frames as they are, in a GIF that begins anew at its end."""
    out = io.BytesIO()
    # One palette for all: colours must not flicker.
    sheet = Image.new("RGB", (frames[0].width, frames[0].height * len(frames)))
    for number, frame in enumerate(frames):
        sheet.paste(frame, (0, number * frame.height))
    palette = sheet.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=2, dither=Image.Dither.NONE)
    drawn = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    drawn[0].save(
        out, "GIF", save_all=True, append_images=drawn[1:], duration=round(1000 * seconds), loop=0
    )
    return out.getvalue()


def _mp4(frames: Sequence[Image.Image], seconds: float) -> bytes:
    import av

    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as film:
        stream = film.add_stream("libx264", rate=10, options={"crf": "12", "preset": "veryfast"})
        stream.width, stream.height = frames[0].size
        stream.pix_fmt = "yuv420p"  # the only one that every browser plays
        for frame in frames:
            for _ in range(max(1, round(10 * seconds))):
                pixels = np.asarray(frame.convert("RGB"))
                film.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        film.mux(stream.encode())
    return out.getvalue()
