"""A request's body: read with limits, and looked at for the few values that decide where it goes."""

from __future__ import annotations

import re
import time
from enum import Enum

import msgspec
from litestar.types import Receive

from gasket.deadlines import Deadlines
from gasket.proxy.errors import ClientGoneError, MediaTypeError
from gasket.proxy.forms import (
    LONGEST_MODEL,
    UNAMBIGUOUS_FORM,
    bad_model,
    is_form,
    read_form,
    replace_model_in_form,
)
from gasket.proxy.members import find_members, member
from gasket.proxy.shares import Room, Share
from gasket.server.errors import BadRequestError, SlowRequestError, TooLargeError

_PIECE_TIMEOUT = 30.0
_BODY_TIMEOUT = 300.0
_UNAMBIGUOUS_JSON = re.compile(rb'application/(?:[\w.-]+\+)?json\s*(?:;\s*charset="?utf-?8"?\s*)?', re.IGNORECASE)
_LONGEST_OPTIONS = 1000
_POINTERS = (b'"previous_response_id"', b'"conversation"', b'"background"')
_STORED = member("previous_response_id", "conversation", "background")
_MODEL = member("model")
_STREAM_OPTIONS = member("stream_options")
_NAMED = re.compile(rb'"model"\s*:\s*(?=")')
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_NOT_ASKED = (b"false", b"null")


class Naming(Enum):
    """How a request may name its model. Where that matters, every parser must find the same one."""

    AS_IT_LIKES = 0
    AT_MOST_ONCE = 1
    ONCE = 2


class Wanted(msgspec.Struct):
    """The fields of a request that Gasket reads; of a form only the model. `model` is None where none is named."""

    model: str | None = None
    stream: bool | None = None
    stream_options: msgspec.Raw = msgspec.Raw()
    """As they are written; empty if there are none."""

    @property
    def tells_usage(self) -> bool:
        """Whether the client asked a stream for its usage."""
        asked = self.options().get("include_usage")
        return asked is not None and bytes(asked) not in _NOT_ASKED

    def options(self) -> dict[str, msgspec.Raw]:
        """The options of a stream."""
        return (_OPTIONS.decode(self.stream_options) or {}) if self.stream_options else {}


_DECODER = msgspec.json.Decoder(Wanted)
_OPTIONS = msgspec.json.Decoder(dict[str, msgspec.Raw] | None)
NOTHING = Wanted()


async def read_body(
    receive: Receive, deadlines: Deadlines, room: Room | Share, *, length: int | None, limit: int
) -> bytes:
    """The whole body, at most `limit` bytes; `length` is its Content-Length, if it has one. It has its place in `room`.

    Raises:
        TooLargeError: it is longer.
        BusyError, LimitedError: there is no room for it.
        SlowRequestError: a piece took more than 30 s, or all of it more than 300 s.
        ClientGoneError: the client left.
    """
    if length is not None and length > limit:
        raise _too_large(limit)
    body: bytes | bytearray = b""
    size, more = 0, True
    ends = time.monotonic() + _BODY_TIMEOUT
    try:
        while more:
            try:
                message = await deadlines.in_time(receive(), min(_PIECE_TIMEOUT, ends - time.monotonic()))
            except TimeoutError:
                raise SlowRequestError from None
            if message["type"] != "http.request":
                raise ClientGoneError
            more = message.get("more_body", False)
            piece = message.get("body", b"")
            if size + len(piece) > limit:
                raise _too_large(limit)
            room.take(len(piece))
            size += len(piece)
            if not body:
                body = piece
            else:  # a list of pieces of two bytes would take thirty times their size
                body = body if isinstance(body, bytearray) else bytearray(body)
                body += piece
    except BaseException:
        room.give_back(size)
        raise
    return bytes(body)


def read_wanted(body: bytes, content_type: bytes, naming: Naming) -> Wanted:
    """What the body says.

    Raises:
        BadRequestError: it is neither a JSON object nor a form, a value is not of its type, or the model is not named
            as it has to be.
        MediaTypeError: it matters who finds which model, and the type leaves that open.
    """
    matters = naming is not Naming.AS_IT_LIKES
    if matters and content_type and not _is_unambiguous(content_type):
        raise MediaTypeError
    if is_form(content_type):
        model, named = read_form(body, content_type, strictly=matters)
        wanted = Wanted(model=model)
    else:
        wanted = _read_json(body)
        named = _count_models(body, wanted.model) if matters else 0
    if wanted.model is not None and not 0 < len(wanted.model) <= LONGEST_MODEL:
        raise bad_model()
    if matters and (named != (wanted.model is not None) or (naming is Naming.ONCE and wanted.model is None)):
        raise BadRequestError(
            "The model decides where a request of this key goes: the body has to name one, once, as `model`.",
            code="model_required",
            param="model",
        )
    return wanted


def find_stored(body: bytes) -> str | None:
    """The first member of a request for a response that has to do with what the upstream keeps, however it is written:
    `previous_response_id`, `conversation` or `background` (OpenAI API reference, "Create a model response").
    """
    lowered = body.lower()
    if lowered.isascii() and b"\\u" not in lowered and not any(name in lowered for name in _POINTERS):
        return None
    return next((found.lastgroup for found in find_members(body, _STORED) if found["nothing"] is None), None)


def ask_for_usage(body: bytes, wanted: Wanted) -> bytes | None:
    """The same request, which asks for the usage of its stream (OpenAI API reference, `stream_options`); None if it is
    not clear where.
    """
    if not wanted.stream_options:
        return body.rstrip()[:-1] + b',"stream_options":{"include_usage":true}}'
    places = find_members(body, _STREAM_OPTIONS)
    if len(places) != 1:
        return None
    [place] = places
    start = place.end() if place["nothing"] is None else place.start("nothing")
    options = msgspec.json.encode({**wanted.options(), "include_usage": True})
    return body[:start] + options + body[start + len(memoryview(wanted.stream_options)) :]


def replace_model(body: bytes, content_type: bytes, model: str) -> bytes:
    """The same request for another model. `read_wanted` has found that it names one, once."""
    if is_form(content_type):
        return replace_model_in_form(body, content_type, model)
    # Where the name stands nowhere else, and is not spelt in another way, it need not be looked for in all objects.
    at = body.find(b'"model"')
    plain = at >= 0 and body.find(b'"model"', at + 1) < 0 and b"\\u00" not in body
    place = _NAMED.match(body, at) if plain else find_members(body, _MODEL)[0]
    value = None if place is None else _STRING.match(body, place.end())
    if value is None:
        raise bad_model()
    return body[: value.start()] + msgspec.json.encode(model) + body[value.end() :]


def _is_unambiguous(content_type: bytes) -> bool:
    """Whether everybody reads a body of this type alike: JSON in UTF-8 (RFC 8259, 8.1), or a form with one boundary."""
    return bool(_UNAMBIGUOUS_JSON.fullmatch(content_type) or UNAMBIGUOUS_FORM.fullmatch(content_type))


def _read_json(body: bytes) -> Wanted:
    try:
        if not body.isascii():
            body.decode()  # the decoder does not look into what it skips
        wanted = _DECODER.decode(body)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$.")
        param = path.partition(".")[0].strip("`") or None
        raise BadRequestError(f"{param or 'The body'}: {message}.", param=param) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _no_json(error) from None
    if (options := memoryview(wanted.stream_options)) and (
        len(options) > _LONGEST_OPTIONS or bytes(options[:1]) not in (b"{", b"n")
    ):
        raise BadRequestError("stream_options: Expected an object of at most 1000 bytes.", param="stream_options")
    return wanted


def _count_models(body: bytes, model: str | None) -> int:
    """How often the object has the key `model`: parsers differ on which of two counts, and those of Go, which many
    backends are written in, take `Model` for it, too.
    """
    expected = int(model is not None)
    if body.lower().count(b'"model"') == expected and b"\\u00" not in body:
        return expected
    return len(find_members(body, _MODEL))


def _no_json(error: Exception) -> BadRequestError:
    return BadRequestError(f"The body is not JSON: {error}.", code="invalid_json")


def _too_large(limit: int) -> TooLargeError:
    return TooLargeError(f"The request's body is larger than {limit} bytes.")
