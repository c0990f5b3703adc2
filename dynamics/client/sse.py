"""Server-sent events, read as the HTML standard says (section 9.2, "Interpreting an event stream").

Bytes may be cut anywhere, also within a character or between CR and LF.
"""

import codecs
from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One event."""

    name: str
    """``message`` where the stream names none."""
    data: str
    """The ``data`` lines, joined by newlines."""


def read_events(chunks: Iterable[bytes]) -> Iterator[Event]:
    """Events as soon as their closing blank line has arrived; an unfinished last one is dropped."""
    name = ""
    data: list[str] = []
    for line in _lines(chunks):
        if not line:
            if data:
                yield Event(name=name or "message", data="\n".join(data))
            name, data = "", []
            continue
        field, _, value = line.partition(":")  # a comment has an empty field
        value = value.removeprefix(" ")
        if field == "event":
            name = value
        elif field == "data":
            data.append(value)


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Lines that end in LF, CR or CRLF, without their ends and without a byte-order mark."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    rest, at_start, after_cr = "", True, False
    for chunk in chunks:
        text = decoder.decode(chunk)
        if not text:
            continue
        if at_start:
            text, at_start = text.removeprefix("\ufeff"), False
        if after_cr:  # its line is out already: an LF here is the second half of that line's end
            text = text.removeprefix("\n")
        after_cr = text.endswith("\r")
        *whole, rest = (rest + text).replace("\r\n", "\n").replace("\r", "\n").split("\n")
        yield from whole
