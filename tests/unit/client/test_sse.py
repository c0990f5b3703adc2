from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamics.client.sse import Event, read_events

STREAM = (
    "\ufeff: a comment keeps the line open\r\n\r\n"
    'event: start\r\ndata: {"a":\rdata: 1}\r\n\r\n'
    "id: 7\r\n\nretry: 10\ndata:no space\ndata\ndata:  two spaces\n\n"
    "event: nothing to say\n\n"
    "event: last\ndata: süß ✓\n\n"
    "event: lost\ndata: cut off"
).encode()
EVENTS = [
    Event(name="start", data='{"a":\n1}'),
    Event(name="message", data="no space\n\n two spaces"),
    Event(name="last", data="süß ✓"),
]


def test_a_stream_reads_as_the_standard_says():
    assert list(read_events([STREAM])) == EVENTS


@given(st.lists(st.integers(0, len(STREAM)), max_size=40).map(sorted))
def test_where_the_stream_is_cut_does_not_matter(cuts):
    bounds = [0, *cuts, len(STREAM)]
    chunks = [STREAM[a:b] for a, b in pairwise(bounds)]
    assert list(read_events(chunks)) == EVENTS


def test_every_byte_may_come_alone():
    assert list(read_events(bytes([byte]) for byte in STREAM)) == EVENTS


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
def test_an_event_is_out_before_the_next_chunk_is_asked_for(end):
    def chunks():
        yield f"data: first{end}{end}".encode()
        raise AssertionError("the event was complete")

    assert next(iter(read_events(chunks()))).data == "first"
