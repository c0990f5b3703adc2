"""The process that reads hostile files: `dynamics.data.video.sandbox` starts it, as a module.

It takes one JSON request per line on stdin and answers on stdout with a header (two big-endian
uint32: bytes of JSON, bytes of pixels), the JSON, and the pixels. FFmpeg and the picture codecs
parse bytes in C, so the process has limits on memory, processor time, and writing.
"""

import base64
import json
import math
import os
import resource
import signal
import struct
import sys
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from dynamics.core.images import PictureError
from dynamics.data.video.decode import (
    BadClip,
    Bars,
    DecodeSpec,
    Ends,
    film_s,
    read_clip,
    read_ends,
)
from dynamics.data.video.pictures import read_pictures

HEADER = struct.Struct(">II")


def main(memory_mb: int) -> None:
    """Answer requests until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get into the replies
    _limit_process(memory_mb)
    _reply(replies, {"ready": True})
    for line in sys.stdin.buffer:
        request = json.loads(line)
        limit_cpu(request["cpu_s"])
        try:
            answer, pixels = _ANSWERS[request["kind"]](request)
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


def _video(request: dict[str, Any]) -> Path:
    """The video of a request, with processor time for its length granted."""
    path = Path(request["path"])
    limit_cpu(math.ceil(request["cpu_s"] + request["cpu_per_s"] * film_s(path)))
    return path


def _clip(request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    clip = read_clip(_video(request), _spec(request["spec"]))
    answer = {
        "indices": clip.indices,
        "times_s": clip.times_s,
        "pairs": [asdict(pair) for pair in clip.pairs],
    }
    return answer, clip.frames.tobytes()


def _segment(request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    span_s = None if request["span_s"] is None else tuple(request["span_s"])
    return _ends(read_ends(_video(request), span_s, request["frame_px"], _bars(request["bars"])))


def _pictures(request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    source, target = (base64.b64decode(payload) for payload in request["payloads"])
    return _ends(read_pictures(source, target, request["frame_px"], _bars(request["bars"])))


def _spec(fields: dict[str, Any]) -> DecodeSpec:
    return DecodeSpec(**fields | {"bars": _bars(fields["bars"])})


def _bars(colour: list[int] | None) -> Bars:
    # JSON knows no tuples.
    return None if colour is None else (colour[0], colour[1], colour[2])


def _ends(ends: Ends) -> tuple[dict[str, Any], bytes]:
    return {"indices": ends.indices, "times_s": ends.times_s}, ends.frames.tobytes()


_ANSWERS = {"clip": _clip, "segment": _segment, "pictures": _pictures}
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
