from __future__ import annotations

import asyncio
import json
import time
import tracemalloc
from collections.abc import Iterable
from contextlib import suppress

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from litestar.types import HTTPReceiveMessage, HTTPRequestEvent, Receive

from gasket.deadlines import Deadlines
from gasket.proxy.bodies import Naming, Wanted, ask_for_usage, find_stored, read_body, read_wanted
from gasket.proxy.errors import BusyError, ClientGoneError, MediaTypeError
from gasket.proxy.shares import Room
from gasket.server.errors import BadRequestError, SlowRequestError, TooLargeError

JSON = b"application/json"
FORM = b"multipart/form-data; boundary=x"
DEEP = 100_000


def read(body: bytes, content_type: bytes = JSON, *, exactly_one_model: bool = False) -> Wanted:
    return read_wanted(body, content_type, Naming.ONCE if exactly_one_model else Naming.AS_IT_LIKES)


def refused(body: bytes, content_type: bytes = JSON, *, exactly_one_model: bool = False) -> BadRequestError:
    with pytest.raises(BadRequestError) as error:
        read(body, content_type, exactly_one_model=exactly_one_model)
    assert error.value.status == 400
    return error.value


def form(*parts: tuple[bytes, bytes], boundary: bytes = b"x") -> bytes:
    """A form of parts; of each the options of its Content-Disposition, and its value."""
    lines = [b"--%b\r\nContent-Disposition: form-data; %b\r\n\r\n%b\r\n" % (boundary, *part) for part in parts]
    return b"".join(lines) + b"--%b--\r\n" % boundary


MODEL = (b'name="model"', b"m")
OTHER = (b'name="prompt"', b"a model")


class TestJson:
    @pytest.mark.parametrize(
        ("body", "model", "stream", "tells_usage"),
        [
            (b"{}", None, None, False),
            (b'{"model": "m"}', "m", None, False),
            (b' {"messages":[{"model":"x"}],"stream":true,"model":"m"}\n', "m", True, False),
            (b'{"model":null,"stream":false,"stream_options":null}', None, False, False),
            (b'{"stream_options":{"include_usage":true,"x":[1]}}', None, None, True),
            (b'{"stream_options":{"include_usage":false}}', None, None, False),
            ('{"model":"größe/\\u0061:latest"}'.encode(), "größe/a:latest", None, False),
            (b'{"model":"%b"}' % (b"m" * 1000), "m" * 1000, None, False),
        ],
    )
    def test_what_it_says(self, body: bytes, model: str | None, stream: bool | None, tells_usage: bool) -> None:
        for content_type in (JSON, b"", b"text/plain; charset=utf-8"):
            wanted = read(body, content_type)
            assert (wanted.model, wanted.stream, wanted.tells_usage) == (model, stream, tells_usage)

    @pytest.mark.parametrize(
        ("body", "param"),
        [
            (b'{"model": 1}', "model"),
            (b'{"model": ["m"]}', "model"),
            (b'{"model": ""}', "model"),
            (b'{"model":"%b"}' % (b"m" * 1001), "model"),
            (b'{"stream": "true"}', "stream"),
            (b'{"stream": 1}', "stream"),
            (b'{"stream_options": true}', "stream_options"),
            (b'{"stream_options": [1]}', "stream_options"),
            (b'{"stream_options": {"x":"%b"}}' % (b"x" * 1000), "stream_options"),
            (b"[]", None),
            (b"null", None),
            (b'"model"', None),
        ],
    )
    def test_a_value_that_is_not_of_its_type(self, body: bytes, param: str | None) -> None:
        error = refused(body)
        assert (error.code, error.param) == ("invalid_body", param)
        assert str(error).startswith(f"{param or 'The body'}: ")

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b" ",
            b"{",
            b"{'model': 'm'}",
            b'{"model": "m"} x',
            b'{"model": "m",}',
            b'{"model": "\xff"}',
            b'{"model": "m", "x": "\xff"}',
            b'{"model": "m", "\xff": 1}',
            b'{"model": "m", "mo\xffdel": "other"}',
            b'{"model": "\\ud800"}',
            b'{"model": "m", "x": NaN}',
            b'\xef\xbb\xbf{"model": "m"}',
            '{"model": "m"}'.encode("utf-16"),
            b"model=m",
            b'{"x":' + b"[" * DEEP,
            b'{"model":"m","x":%b%b}' % (b"[" * DEEP, b"]" * DEEP),
            b'{"model":"m","x":%b0%b}' % (b'{"a":' * DEEP, b"}" * DEEP),
        ],
        ids=lambda body: str(body[:20]),
    )
    def test_what_is_no_json(self, body: bytes) -> None:
        assert refused(body).code == "invalid_json"

    @pytest.mark.parametrize(
        "body",
        [
            b'{"model":"m"}',
            b'{"model":"m","messages":[{"content":"the \\"model\\" is","model":"x"}]}',
            b'{"mod\\u0065l":"m"}',
            b'{"model":"m","x":"\\u00e4"}',
            b'{"model":"m","x":{"model":"x","y":{"model":1}}}',
            b'{"x":"model","model":"m"}',
        ],
    )
    def test_one_model(self, body: bytes) -> None:
        assert read(body, exactly_one_model=True).model == "m"

    @pytest.mark.parametrize(
        "body",
        [
            b"{}",
            b'{"model":null}',
            b'{"Model":"m"}',
            b'{"x":{"model":"m"}}',
            b'{"model":"m","model":"other"}',
            b'{"model":"m","model":"m"}',
            b'{"mod\\u0065l":"other","model":"m"}',
            b'{"\\u006dodel":"m","model":"m","x":1}',
            b'{"model":"m","Model":"other"}',
            b'{"MODEL":"other","model":"m"}',
            b'{"\\u004dodel":"other","model":"m"}',
        ],
    )
    def test_none_or_two_where_it_must_be_one(self, body: bytes) -> None:
        error = refused(body, exactly_one_model=True)
        assert (error.code, error.param) == ("model_required", "model")

    @pytest.mark.parametrize(
        ("body", "model"),
        [
            (b"{}", None),
            (b'{"input": {"model": "m"}}', None),
            (b'{"purpose": "\\u00e9"}', None),
            (b'{"model": "m"}', "m"),
            (b'{"mod\\u0065l": "m"}', "m"),
        ],
    )
    def test_where_none_is_needed(self, body: bytes, model: str | None) -> None:
        assert read_wanted(body, JSON, Naming.AT_MOST_ONCE).model == model

    @pytest.mark.parametrize(
        "body", [b'{"Model": "m"}', b'{"model": null}', b'{"model":"m","MODEL":"m"}', b'{"model\\u0000x": "m"}']
    )
    def test_where_none_is_needed_one_that_others_find_is_none(self, body: bytes) -> None:
        with pytest.raises(BadRequestError) as error:
            read_wanted(body, JSON, Naming.AT_MOST_ONCE)
        assert error.value.code == "model_required"

    @pytest.mark.parametrize(
        "content_type",
        [
            b"",
            JSON,
            b"Application/JSON",
            b"application/json; charset=utf-8",
            b'application/json;charset="UTF8"',
            b"application/vnd.api+json",
        ],
    )
    def test_types_that_everybody_reads_alike(self, content_type: bytes) -> None:
        assert read(b'{"model":"m"}', content_type, exactly_one_model=True).model == "m"

    @pytest.mark.parametrize(
        "content_type",
        [
            b"application/x-www-form-urlencoded",
            b"text/plain",
            b"application/octet-stream",
            b"application/json; charset=utf-7",
            b"application/json; charset=utf-8; charset=utf-7",
            b"application/json, application/x-www-form-urlencoded",
            b"application/jsonp",
            b"multipart/mixed; boundary=x",
            b"json",
        ],
    )
    def test_types_that_are_read_in_other_ways_too(self, content_type: bytes) -> None:
        body = b'{"model":"m","x":"&model=other&"}'
        with pytest.raises(MediaTypeError) as error:
            read(body, content_type, exactly_one_model=True)
        assert (error.value.status, error.value.code) == (415, "unsupported_media_type")
        if not content_type.startswith(b"multipart"):
            assert read(body, content_type).model == "m"


KEYS = st.sampled_from(["model", "Model", "mOdEl", "stream", "x"])
LEAVES = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["m", '"model"'])
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3))


@given(st.lists(st.tuples(KEYS, VALUES), max_size=6), st.data())
def test_whoever_reads_it_finds_the_same_one_model(members: list[tuple[str, object]], data: st.DataObject) -> None:
    """Keys escaped or not, repeated, in any case: if a body passes, the first, the last and any match is the same."""

    def spell(key: str) -> str:
        spelt = "".join(
            data.draw(st.sampled_from([char, f"\\u{ord(char):04x}", f"\\u{ord(char):04X}"])) for char in key
        )
        return f'"{spelt}"'

    body = "{" + ",".join(f"{spell(key)}:{json.dumps(value)}" for key, value in members) + "}"
    try:
        found = read(body.encode(), exactly_one_model=True)
    except BadRequestError:
        return
    assert [value for key, value in members if key.lower() == "model"] == [found.model]


class TestForm:
    @pytest.mark.parametrize(
        ("content_type", "boundary"),
        [
            (b"multipart/form-data; boundary=x", b"x"),
            (b"Multipart/Form-Data;BOUNDARY=x", b"x"),
            (b'multipart/form-data; boundary="x"', b"x"),
            (b'multipart/form-data; boundary="a b\'()+_,-./:=?"', b"a b'()+_,-./:=?"),
            (b"multipart/form-data; charset=utf-8; boundary=----WebKitFormBoundaryA1", b"----WebKitFormBoundaryA1"),
            (b"multipart/form-data; boundary=x; charset=utf-8", b"x"),
        ],
    )
    def test_boundaries(self, content_type: bytes, boundary: bytes) -> None:
        assert read(form(OTHER, MODEL, boundary=boundary), content_type, exactly_one_model=True).model == "m"

    def test_nothing_is_put_into_a_form(self) -> None:
        """Only a request that says that it is streamed is asked for its usage."""
        assert not read(form(MODEL, (b'name="stream"', b"true")), FORM).stream

    def test_files_are_not_looked_into(self) -> None:
        content = b'--y\r\nContent-Disposition: form-data; name="model"\r\n\r\nother\r\n{"model": 1} \0\xff' * 1000
        file = (b'name="file"; filename="model.mp3"\r\nContent-Type: audio/mpeg', content)
        assert read(form(file, MODEL, file), FORM, exactly_one_model=True).model == "m"

    @pytest.mark.parametrize("parts", [[], [OTHER], [MODEL, MODEL], [MODEL, OTHER, (b"name=model", b"other")]])
    def test_none_or_two_where_it_must_be_one(self, parts: list[tuple[bytes, bytes]]) -> None:
        body = form(*(parts or [OTHER]))
        assert refused(body, FORM, exactly_one_model=True).code == "model_required"
        assert read(body, FORM).model in (None, "m", "other")

    @pytest.mark.parametrize(
        "second",
        [
            b'name="model"; name="other"',
            b'name="other"; name="model"',
            b"name=\"other\"; name*=utf-8''model",
            b"name*=utf-8''model; name=\"other\"",
            b'name="other"; name*0=mo; name*1=del',
            b'name="other"\r\nContent-Disposition: form-data; name="model"',
            b'name="model"\r\nContent-Disposition: form-data; name="other"',
            b"name*=utf-8''model",
            b'filename="a"',
        ],
    )
    def test_a_part_has_one_name_whoever_reads_it(self, second: bytes) -> None:
        assert refused(form(MODEL, (second, b"other")), FORM, exactly_one_model=True).code == "invalid_body"

    @pytest.mark.parametrize("file", [b"a; name=b.wav", b"a ;name*=b", b'a\\"; name=b.wav', b"\\\\"])
    def test_a_file_may_have_any_name(self, file: bytes) -> None:
        assert read(form((b'name="file"; filename="%b"' % file, b"x"), MODEL), FORM).model == "m"
        assert refused(form((b'name="file"; name="x"; filename="%b"' % file, b"x"), MODEL), FORM).code == "invalid_body"

    @pytest.mark.parametrize("name", [b"Model", b"model[]", b"model[0]", b"MODEL.x"])
    def test_what_some_take_for_a_model_is_one(self, name: bytes) -> None:
        second = (b'name="%b"' % name, b"other")
        assert refused(form(MODEL, second), FORM, exactly_one_model=True).code == "model_required"
        assert read(form(MODEL, second), FORM).model == "m"
        assert read(form(second), FORM, exactly_one_model=True).model == "other"

    @pytest.mark.parametrize(
        "part",
        [
            b'name="mod\\el"',
            b'name="mod%65l"',
            b'name="=?utf-8?q?model?="',
            b'name="m\xc3\xb6del"',
            b'name="model "',
            b'filename="model"; name="x"',
            b'name="x"\r\nX-Y: \nContent-Disposition: form-data; name="model"',
            b'name="x"\r\nContent-Type: Multipart/mixed; boundary=y',
            b'name="model"; filename="m"',
        ],
    )
    def test_a_part_that_can_be_read_in_two_ways(self, part: bytes) -> None:
        assert refused(form(MODEL, (part, b"other")), FORM, exactly_one_model=True).code == "invalid_body"
        assert read(form(MODEL, (part, b"other")), FORM).model in ("m", "other")

    def test_a_boundary_in_a_part_that_is_one_with_other_line_breaks(self) -> None:
        content = b'\n--x\nContent-Disposition: form-data; name="model"\n\nother\n'
        body = form(MODEL, (b'name="file"; filename="f"', content))
        assert refused(body, FORM, exactly_one_model=True).code == "invalid_body"
        assert read(body, FORM).model == "m"

    def test_a_form_has_no_more_parts_than_anybody_needs(self) -> None:
        assert read(form(MODEL, *[OTHER] * 99), FORM, exactly_one_model=True).model == "m"
        assert refused(form(MODEL, *[OTHER] * 100), FORM).code == "invalid_body"

    @pytest.mark.parametrize(
        "content_type",
        [
            b"multipart/form-data; boundary=x; charset=utf-7",
            b"multipart/form-data; charset=utf-16; boundary=x",
            b"multipart/form-data; boundary=x, application/json",
            b"multipart/form-data boundary=y; boundary=x",
            b"multipart/form-data-or-so; boundary=x",
        ],
    )
    def test_a_type_that_everybody_reads_alike(self, content_type: bytes) -> None:
        with pytest.raises(MediaTypeError):
            read(form(MODEL), content_type, exactly_one_model=True)
        assert read(form(MODEL), content_type).model == "m"

    @pytest.mark.parametrize(
        "content_type",
        [
            b"multipart/form-data; boundary=x; boundary=y",
            b"multipart/form-data; boundary=y; Boundary =x",
            b"multipart/form-data; boundary*=utf-8''y; boundary=x",
        ],
    )
    def test_a_form_has_one_boundary_whoever_reads_it(self, content_type: bytes) -> None:
        assert refused(form(MODEL), content_type).code == "invalid_body"

    @pytest.mark.parametrize(
        ("body", "content_type"),
        [
            (b"", FORM),
            (form(MODEL)[:-5], FORM),
            (form(MODEL)[:-20], FORM),
            (b"before" + form(MODEL), FORM),
            (form(MODEL), b"multipart/form-data"),
            (form(MODEL), b"multipart/form-data; boundary="),
            (form(MODEL), b"multipart/form-data; boundary=y"),
            (form(MODEL), b"multipart/form-data; boundary=\xff"),
            (form(MODEL), b'multipart/form-data; boundary="'),
            (b'{"model": "m"}', FORM),
            (b"--x\r\n\r\nm\r\n--x--\r\n", FORM),
            (b'--x\r\nContent-Disposition: attachment; name="model"\r\n\r\nm\r\n--x--\r\n', FORM),
            (form((b'name="model"\r\nX-Long: ' + b"a" * 10_000, b"m")), FORM),
        ],
    )
    def test_what_is_no_form(self, body: bytes, content_type: bytes) -> None:
        error = refused(body, content_type)
        assert error.code == "invalid_body"
        assert str(error).startswith("The body is not a form: ")

    @pytest.mark.parametrize(
        "option", [b"name*" + b" " * 900 + b"x", b" " * 900 + b"name*", b"name*;" * 150, b'"' + b'\\"' * 450]
    )
    @pytest.mark.parametrize("strictly", [False, True])
    def test_no_header_of_a_part_takes_long(self, option: bytes, strictly: bool) -> None:
        """As many parts as a form may have, with headers as long as they may be. Nothing else runs meanwhile."""
        body = form(*[(b"name=a;" + option, b"v")] * 99, MODEL)
        took = []
        for _ in range(5):  # one may be held up by the machine or by a garbage collection
            started = time.process_time()
            assert read(body, FORM, exactly_one_model=strictly).model == "m"
            took.append(time.process_time() - started)
        assert min(took) < 0.05

    def test_no_content_type_takes_long(self) -> None:
        """Four times as long as a head may be; it took a minute."""
        started = time.process_time()
        for rest in (b";boundary*" + b" " * 250_000 + b"x", b";" + b" " * 250_000, b";boundary*" * 25_000):
            read(form(MODEL), b"multipart/form-data; boundary=x" + rest)
            with pytest.raises(MediaTypeError):
                read(form(MODEL), b"multipart/form-data; boundary=x" + rest, exactly_one_model=True)
        assert time.process_time() - started < 5

    @pytest.mark.parametrize("value", [b"", b"m" * 1001, b"m" * 5_000_000, b"\xff"])
    def test_a_model_that_is_none(self, value: bytes) -> None:
        error = refused(form((b'name="model"', value)), FORM)
        assert (error.code, error.param) == ("invalid_body", "model")


@given(
    st.binary(max_size=60)
    | st.lists(st.sampled_from([b"--x", b"\r\n", b"--", *form(MODEL).split(b" ")])).map(b"".join),
    st.sampled_from([JSON, FORM]) | st.binary(max_size=20).map(lambda rest: b"multipart/form-data" + rest),
    st.booleans(),
)
@example(b"\r\n--x\r\n", FORM, True)
def test_nothing_but_a_refusal_comes_of_nonsense(body: bytes, content_type: bytes, exactly_one_model: bool) -> None:
    with suppress(BadRequestError, MediaTypeError):
        wanted = read(body, content_type, exactly_one_model=exactly_one_model)
        assert msgspec.json.encode(wanted.model)  # the log can show it


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"stream":true}', {"stream": True, "stream_options": {"include_usage": True}}),
        (
            b'{"stream":true,"stream_options":{"x":1,"include_usage":false},"y":[1.0]}',
            {"stream": True, "stream_options": {"x": 1, "include_usage": True}, "y": [1.0]},
        ),
        (b'{"stream":true,"stream_options":null}', {"stream": True, "stream_options": {"include_usage": True}}),
        (
            b'{"x":{"stream_options":{}},"stream\\u005foptions" : {"include_usage": null } ,"stream":true}',
            {"x": {"stream_options": {}}, "stream_options": {"include_usage": True}, "stream": True},
        ),
    ],
)
def test_usage_is_asked_for_and_all_else_stays(body: bytes, expected: dict[str, object]) -> None:
    asking = ask_for_usage(body, read(body))
    assert asking is not None
    assert json.loads(asking) == expected
    assert read(asking).tells_usage


def test_usage_is_asked_for_at_the_end_of_what_the_client_wrote() -> None:
    body = b' {"stream":true, "x":{"stream_options":1} }\n'
    expected = b' {"stream":true, "x":{"stream_options":1} ,"stream_options":{"include_usage":true}}'
    assert ask_for_usage(body, read(body)) == expected


@pytest.mark.parametrize(
    "second", [b'"stream_options":{}', b'"Stream_Options":null', '"\u017ftream_options":{}'.encode()]
)
def test_usage_is_not_asked_for_where_it_is_not_clear_how(second: bytes) -> None:
    body = b'{"stream_options":{},%b,"stream":true}' % second
    assert ask_for_usage(body, read(body)) is None


@pytest.mark.parametrize(
    ("options", "tells"),
    [(b"true", True), (b"1", True), (b'"yes"', True), (b"false", False), (b"null", False)],
)
def test_what_the_client_says_of_its_usage_counts(options: bytes, tells: bool) -> None:
    assert read(b'{"stream_options":{"include_usage": %b }}' % options).tells_usage is tells


def test_numbers_and_texts_stay_as_they_were_written() -> None:
    odd = b'{"a":1.10,"b":1e400,"c":12345678901234567890123,"d":"\\u00e4\\/","stream":true}'
    asking = ask_for_usage(odd, read(odd))
    assert asking is not None
    assert asking.startswith(odd[:-1])


def a_request(*events: tuple[bytes, bool]) -> list[HTTPReceiveMessage]:
    return [HTTPRequestEvent(type="http.request", body=body, more_body=more) for body, more in events]


def told(messages: Iterable[HTTPReceiveMessage], *, pause: float = 0.0) -> Receive:
    """A server that has these messages, one every `pause` seconds, and then is silent."""
    waiting = iter(messages)

    async def receive() -> HTTPReceiveMessage:
        await asyncio.sleep(pause)
        message = next(waiting, None)
        if message is None:
            await asyncio.Event().wait()
            raise AssertionError
        return message

    return receive


async def received(receive: Receive, *, length: int | None = None, limit: int = 10, room: Room | None = None) -> bytes:
    return await read_body(receive, Deadlines(), room or Room(limit), length=length, limit=limit)


class TestReading:
    @pytest.mark.parametrize(
        ("events", "body"),
        [
            ([(b"", False)], b""),
            ([(b"0123456789", False)], b"0123456789"),
            ([(b"01", True), (b"", True), (b"2", True), (b"", False)], b"012"),
        ],
    )
    async def test_all_pieces(self, events: list[tuple[bytes, bool]], body: bytes) -> None:
        assert await received(told(a_request(*events))) == body

    async def test_a_message_without_a_body_is_an_empty_one(self) -> None:
        bare: HTTPReceiveMessage = {"type": "http.request"}  # type: ignore[typeddict-item]  # ASGI: both are optional
        assert await received(told([bare])) == b""

    async def test_a_length_above_the_limit_is_refused_before_anything_is_read(self) -> None:
        with pytest.raises(TooLargeError, match="larger than 10 bytes") as refused:
            await received(told([]), length=11)
        assert (refused.value.status, refused.value.code) == (413, "request_too_large")

    async def test_more_than_the_limit_is_refused_as_soon_as_it_is_there(self) -> None:
        for length in (None, 5):
            with pytest.raises(TooLargeError):
                await received(told(a_request((b"0123456789", True), (b"a", True))), length=length)

    async def test_a_client_that_leaves(self) -> None:
        for before in ([], a_request((b"a", True))):
            with pytest.raises(ClientGoneError):
                await received(told([*before, {"type": "http.disconnect"}]))

    async def test_one_that_falls_silent(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("gasket.proxy.bodies._PIECE_TIMEOUT", 0.1)
        for events in ([], [(b"a", True)]):
            with pytest.raises(SlowRequestError) as refused:
                await received(told(a_request(*events)))
            assert (refused.value.status, refused.value.code) == (408, "request_timeout")

    async def test_one_that_goes_on_for_ever(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("gasket.proxy.bodies._BODY_TIMEOUT", 0.3)
        with pytest.raises(SlowRequestError):
            await received(told(a_request(*[(b"a", True)] * 200, (b"", False)), pause=0.01), limit=10_000)

    async def test_a_slow_one_that_is_quick_enough(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The limit between two pieces begins anew with each."""
        monkeypatch.setattr("gasket.proxy.bodies._PIECE_TIMEOUT", 1.5)
        assert await received(told(a_request(*[(b"a", True)] * 8, (b"", False)), pause=0.2)) == b"a" * 8

    async def test_many_small_pieces_take_little_more_than_their_size(self) -> None:
        pieces = 20_000
        messages = (a_request((number.to_bytes(2), number < pieces))[0] for number in range(pieces + 1))
        tracemalloc.start()
        try:
            assert len(await received(told(messages), limit=10**6)) == 2 * (pieces + 1)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 10 * 2 * pieces


class TestRoom:
    async def test_bodies_have_no_more_bytes_than_there_is_room_for(self) -> None:
        room = Room(10)
        assert await received(told(a_request((b"01234", True), (b"56", False))), room=room) == b"0123456"
        with pytest.raises(BusyError) as refused:
            await received(told(a_request((b"01", True), (b"23", True))), room=room)
        assert (refused.value.status, refused.value.code) == (503, "overloaded")
        assert await received(told(a_request((b"012", False))), room=room) == b"012"
        room.give_back(7)
        room.give_back(3)
        assert await received(told(a_request((b"0123456789", False))), room=room) == b"0123456789"

    async def test_what_is_not_read_to_its_end_leaves_its_room(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("gasket.proxy.bodies._PIECE_TIMEOUT", 0.05)
        room = Room(20)
        left: HTTPReceiveMessage = {"type": "http.disconnect"}
        for messages in (
            a_request((b"01234567", True)),
            [*a_request((b"01234567", True)), left],
            a_request((b"01234567", True), (b"01234567", True)),
        ):
            with pytest.raises((SlowRequestError, ClientGoneError, TooLargeError)):
                await received(told(messages), room=room)
        cancelled = asyncio.ensure_future(received(told(a_request((b"01234567", True))), room=room))
        await asyncio.sleep(0.01)
        cancelled.cancel()
        await asyncio.wait([cancelled])
        room.take(20)


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b'{"input":"the \\"conversation\\""}', None),
        (b'{"input":[{"conversation":"c"}],"x":"\\u00e4"}', None),
        (b'{"previous_response_id":null,"background":false,"conversation":null}', None),
        (b'{"previous_response_id":"resp_1"}', "previous_response_id"),
        (b'{"previous_response_id":"resp_1","previous_response_id":null}', "previous_response_id"),
        (b'{"Previous_Response_ID":"resp_1"}', "previous_response_id"),
        (b'{"previous_response\\u005fid":"resp_1"}', "previous_response_id"),
        (b'{"conversation":{"id":"conv_1"}}', "conversation"),
        (b'{"conversation":"conv_1"}', "conversation"),
        (b'{"background":true}', "background"),
        (b'{"background":"true"}', "background"),
        ('{"previou\u017f_response_id":"resp_1"}'.encode(), "previous_response_id"),
        (b'{"previou\\u017F_response_id":"resp_1"}', "previous_response_id"),
        ('{"bac\u212aground":true}'.encode(), "background"),
        (b'{"bac\\u212aground":true}', "background"),
    ],
)
def test_what_a_response_has_to_do_with_what_is_stored(body: bytes, found: str | None) -> None:
    assert find_stored(body) == found
