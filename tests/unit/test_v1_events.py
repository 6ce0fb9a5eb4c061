from __future__ import annotations

import json
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gasket.proxy.events import LONGEST_HELD, EventStream, error_event, event_data, split_events

LINE_ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])
TEXT = st.text(st.characters(exclude_characters="\r\n\ufeff", exclude_categories=["Cs"]), max_size=12).map(str.encode)
LINE = st.one_of(
    TEXT.map(lambda value: b"data: " + value),
    TEXT.map(lambda value: b"data:" + value),
    TEXT.map(lambda value: b": " + value),
    TEXT.map(lambda value: b"event: " + value),
    TEXT.map(lambda value: b"database: " + value),
    st.sampled_from([b"data", b"id: 1", b"retry: 10", b"data: [DONE]"]),
)
SIZES = st.lists(st.integers(1, 40), max_size=60)


@st.composite
def streams(draw: st.DrawFn, *, mixed: bool = True) -> bytes:
    """Events of any lines, of one kind of line end or of all, whole or not at the end."""
    ends = LINE_ENDS if mixed else st.just(draw(LINE_ENDS))
    lines = draw(st.lists(LINE | st.just(b""), max_size=25))
    return b"".join(line + draw(ends) for line in lines) + draw(st.just(b"") | LINE)


def cut(stream: bytes, sizes: list[int]) -> list[bytes]:
    """The stream in pieces of these sizes; the rest is the last."""
    pieces = []
    for size in sizes:
        pieces.append(stream[:size])
        stream = stream[size:]
    return [piece for piece in [*pieces, stream] if piece]


def events_of(stream: bytes) -> list[bytes]:
    """The data of each event: the algorithm of "Interpreting an event stream", word by word (WHATWG HTML, 9.2.6)."""
    *lines, _unfinished = re.split(rb"\r\n|\n|\r", stream)
    events, data = [], b""
    for line in lines:
        field, _, value = line.partition(b":")
        if not line:
            if data:
                events.append(data.removesuffix(b"\n"))
            data = b""
        elif field == b"data":
            data += value.removeprefix(b" ") + b"\n"
    return events


def ends_at_a_border(passed: bytes) -> bool:
    """Whether the last line that has ended is blank, and none has begun."""
    *lines, unfinished = re.split(rb"\r\n|\n|\r", passed)
    return unfinished == b"" and (lines[-1:] == [b""] or lines == [])


@given(streams(), SIZES)
@example(b"data: a\r\n\r\ndata: b\r\n\r\n", [10, 1, 1])
@example(b"data: a\r\rdata: b\r\r", [9])
@example(b"data: a\n\n\n\ndata: b", [9])
def test_nothing_is_changed_or_lost_and_no_event_goes_out_in_part(stream: bytes, sizes: list[int]) -> None:
    events, passed = EventStream(), b""
    for piece in cut(stream, sizes):
        passed += events.feed(piece)
        assert stream.startswith(passed)
        assert events.clean
        assert ends_at_a_border(passed)
    assert passed + events.rest() == stream
    assert events.rest() == b""


@given(streams(mixed=False), SIZES)
def test_a_whole_event_is_not_held_back(stream: bytes, sizes: list[int]) -> None:
    """A stream whose lines end in one way; CRLF of which the LF has not come may be the first half of a blank line."""
    events, passed, fed = EventStream(), b"", b""
    for piece in cut(stream, sizes):
        fed += piece
        passed += events.feed(piece)
        assert events_of(passed) == events_of(fed if not fed.endswith(b"\r") or b"\n" not in stream else fed[:-1])


@given(streams())
@example(b"data\ndata: a\n\n")
@example(b"\r\ndata: a\r\n\r\n")
def test_events_are_split_and_read_as_the_standard_says(stream: bytes) -> None:
    events = EventStream()
    block = events.feed(stream)
    found = split_events(block)
    assert b"".join(found) == block
    assert [data for data in map(event_data, found) if data] == [data for data in events_of(block) if data]


@given(st.lists(st.integers(0, 300), min_size=1, max_size=6), st.integers(1, 90))
def test_a_huge_event_goes_on_in_pieces(lengths: list[int], size: int) -> None:
    stream = b"".join(b"data: %b\n\n" % (b"x" * length) for length in lengths)
    events, passed, fed = EventStream(), b"", 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gasket.proxy.events.LONGEST_HELD", 100)
        for piece in cut(stream, [size] * (len(stream) // size)):
            fed += len(piece)
            passed += events.feed(piece)
            assert events.clean == ends_at_a_border(passed)
            assert fed - len(passed) <= 100
    assert passed + events.rest() == stream


def test_it_is_clean_again_after_the_end_of_a_huge_event() -> None:
    events = EventStream()
    assert events.feed(b"data: " + b"x" * LONGEST_HELD) != b""
    assert not events.clean
    assert events.feed(b"\ndata: y") == b""
    assert not events.clean
    assert events.feed(b"\n\nda") == b"\ndata: y\n\n"
    assert events.clean


def test_a_stream_that_ends_within_an_event_is_not_clean() -> None:
    events = EventStream()
    assert events.feed(b"data: a\n\ndata: b") == b"data: a\n\n"
    assert events.clean
    assert events.rest() == b"data: b"
    assert not events.clean


def test_an_error_is_an_event_of_its_own() -> None:
    error = json.dumps({"error": {"message": "off"}}).encode()
    assert events_of(b"data: a\n\n" + error_event(error)) == [b"a", error]
