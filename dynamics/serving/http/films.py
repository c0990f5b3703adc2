"""Films of the frames that a client sends."""

import threading
from typing import TYPE_CHECKING

from dynamics.core.errors import UserError
from dynamics.serving.schemas import MAX_FILM_PX, AnimationRequest

if TYPE_CHECKING:
    from PIL import Image

FILMS = {"gif": "image/gif", "mp4": "video/mp4"}
"""Formats by kind."""
_one = threading.Lock()


def film(asked: AnimationRequest) -> bytes:
    """The film that is asked for; the frames of one at a time are in memory.

    Raises:
        UserError: the frames are no pictures, too large, or of several sizes.
    """
    # Here, since a process that only passes requests on starts without them.
    from dynamics.core.animation import animation
    from dynamics.core.images import read_picture
    from dynamics.serving.images import from_base64

    with _one:
        frames: list[Image.Image] = []
        for text in asked.frames:
            frame = read_picture(from_base64(text))
            if max(frame.size) > MAX_FILM_PX or (frames and frame.size != frames[0].size):
                raise UserError(f"frames must be of one size, at most {MAX_FILM_PX} pixels a side")
            frames.append(frame)
        return animation(frames, asked.kind, seconds=asked.seconds)
