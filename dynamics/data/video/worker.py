"""The process that reads hostile files: `dynamics.data.video.sandbox` starts it, as a module.

Requests come over the socket that is its stdin: a big-endian uint32, with which the open file of a
video may come, and as many bytes of JSON. It answers on stdout with a header (two uint32: bytes of
JSON, bytes of pixels), the JSON, and the pixels. FFmpeg and the picture codecs parse bytes in C, so
the process has limits on memory, processor time, and writing, and no way to anything that it was
not handed, where the kernel can take it away (`dynamics.data.video.seal`).
"""

import base64
import codecs
import json
import math
import os
import resource
import signal
import socket
import struct
import sys
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from PIL import Image

from dynamics.core.images import PictureError
from dynamics.data.video.decode import (
    BadClip,
    Bars,
    DecodeSpec,
    Ends,
    FilmSpec,
    film_s,
    read_clip,
    read_ends,
    read_film,
)
from dynamics.data.video.pictures import read_pictures
from dynamics.data.video.seal import seal

REQUEST = struct.Struct(">I")
HEADER = struct.Struct(">II")
_LATE = ("av.subtitles.stream", "numpy.ma", "PIL.ImageColor", "PIL.ImagePalette")
"""Modules that the libraries import when they need them: too late for a sealed process."""
_CODECS = ("ascii", "latin-1", "cp1252", "utf-8-sig", "utf-16", "utf-16-be", "utf-16-le", "utf-32")
"""Encodings of texts in pictures, which Python would look for on the disk when they are met."""


def main(memory_mb: int) -> None:
    """Answer requests until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get into the replies
    requests = socket.socket(fileno=os.dup(0))
    Image.init()
    for name in _LATE:
        import_module(name)
    for name in _CODECS:
        codecs.lookup(name)
    _limit_process(memory_mb)
    _reply(replies, {"open": seal()})
    while (found := _request(requests)) is not None:
        request, video = found
        limit_cpu(request["cpu_s"])
        try:
            answer, pixels = _ANSWERS[request["kind"]](request, video)
        except (BadClip, PictureError) as error:
            _reply(replies, {"reason": error.reason, "detail": str(error)})
        except MemoryError:
            _reply(replies, {"reason": "out_of_memory", "detail": ""})
        # The border of the sandbox: whatever a hostile file makes the bindings raise is a verdict
        # on the file, and the detail says which error it was.
        except Exception as error:
            detail = f"{type(error).__name__}: {error}"[:200]
            _reply(replies, {"reason": "unreadable", "detail": detail})
        else:
            _reply(replies, answer, pixels)
        finally:
            if video >= 0:
                os.close(video)


def _request(requests: socket.socket) -> tuple[dict[str, Any], int] | None:
    """The next request and its open file, -1 for none; None at the end."""
    head, files, _, _ = socket.recv_fds(requests, REQUEST.size, 1, socket.MSG_WAITALL)
    if len(head) < REQUEST.size:
        return None
    size = REQUEST.unpack(head)[0]
    body = bytearray()
    while len(body) < size and (piece := requests.recv(min(size - len(body), 1 << 20))):
        body += piece
    return json.loads(body), files[0] if files else -1


def _grant(request: dict[str, Any], video: int) -> None:
    """Processor time for the length of a video."""
    limit_cpu(math.ceil(request["cpu_s"] + request["cpu_per_s"] * film_s(video)))


def _clip(request: dict[str, Any], video: int) -> tuple[dict[str, Any], bytes]:
    _grant(request, video)
    clip = read_clip(video, _spec(request["spec"]), request["shown_px"])
    answer = {
        "indices": clip.indices,
        "times_s": clip.times_s,
        "pairs": [asdict(pair) for pair in clip.pairs],
    }
    return answer, clip.frames.tobytes() + clip.shown.tobytes()


def _film(request: dict[str, Any], video: int) -> tuple[dict[str, Any], bytes]:
    _grant(request, video)
    fields = request["film"]
    fields |= {name: tuple(fields[name]) for name in ("indices", "ends")}
    film = read_film(video, FilmSpec(**fields))
    answer = {
        "frames": film.frames.shape,
        "ends": film.ends.shape,
        "times_s": film.times_s,
    }
    return answer, film.frames.tobytes() + film.ends.tobytes()


def _segment(request: dict[str, Any], video: int) -> tuple[dict[str, Any], bytes]:
    _grant(request, video)
    span_s = None if request["span_s"] is None else tuple(request["span_s"])
    return _ends(read_ends(video, span_s, request["frame_px"], _bars(request["bars"])))


def _pictures(request: dict[str, Any], _: int) -> tuple[dict[str, Any], bytes]:
    source, target = (base64.b64decode(payload) for payload in request["payloads"])
    return _ends(read_pictures(source, target, request["frame_px"], _bars(request["bars"])))


def _spec(fields: dict[str, Any]) -> DecodeSpec:
    return DecodeSpec(**fields | {"bars": _bars(fields["bars"])})


def _bars(colour: list[int] | None) -> Bars:
    # JSON knows no tuples.
    return None if colour is None else (colour[0], colour[1], colour[2])


def _ends(ends: Ends) -> tuple[dict[str, Any], bytes]:
    return {"indices": ends.indices, "times_s": ends.times_s}, ends.frames.tobytes()


_ANSWERS = {"clip": _clip, "film": _film, "segment": _segment, "pictures": _pictures}
"""Kind of request to the function that answers it."""


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


def limit_cpu(seconds: int) -> None:
    """Limit processor time: an endless decode ends the process even when the parent is gone."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    used = usage.ru_utime + usage.ru_stime
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (int(used) + seconds + 1, hard))


if __name__ == "__main__":
    main(int(sys.argv[1]))
