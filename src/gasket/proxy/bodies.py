"""A request's body: read with limits, and looked at for the few values that decide where it goes."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import msgspec
from litestar.types import Receive
from multipart import MultipartError, MultipartSegment, PushMultipartParser, parse_options_header

from gasket.deadlines import Deadlines
from gasket.proxy.errors import BadRequestError, BusyError, ClientGoneError, SlowRequestError, TooLargeError

_PIECE_TIMEOUT = 30.0
_BODY_TIMEOUT = 300.0
_LONGEST_MODEL = 1000
_BOUNDARIES = re.compile(rb";\s*boundary(?:\*[^=;]*)?\s*=", re.IGNORECASE)
_NAMES = re.compile(r";\s*name(?:\*[^=;]*)?\s*=", re.IGNORECASE)


class Wanted(msgspec.Struct):
    """What a request says about itself. `model` is None where it names none."""

    model: str | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None

    @property
    def tells_usage(self) -> bool:
        """Whether the client asked a stream for its usage."""
        return bool((self.stream_options or {}).get("include_usage"))


_DECODER = msgspec.json.Decoder(Wanted)
NOTHING = Wanted()


class Room:
    """The bytes of bodies that a replica may have at once. Whoever has read a body gives its place back."""

    __slots__ = ("_left",)

    def __init__(self, size: int) -> None:
        self._left = size

    def take(self, size: int) -> None:
        """Raises BusyError if there is not as much left."""
        if size > self._left:
            raise BusyError("This replica has as many bytes of requests as it may have at once.")
        self._left -= size

    def give_back(self, size: int) -> None:
        """So many bytes are no longer there."""
        self._left += size


async def read_body(receive: Receive, deadlines: Deadlines, room: Room, *, length: int | None, limit: int) -> bytes:
    """The whole body, at most `limit` bytes; `length` is its Content-Length, if it has one. It has its place in `room`.

    Raises:
        TooLargeError: it is longer.
        BusyError: there is no room for it.
        SlowRequestError: a piece took more than 30 s, or all of it more than 300 s.
        ClientGoneError: the client left.
    """
    if length is not None and length > limit:
        raise _too_large(limit)
    pieces: list[bytes] = []
    size, more = 0, True
    ends = time.monotonic() + _BODY_TIMEOUT
    try:
        while more:
            try:
                with deadlines.limit(min(_PIECE_TIMEOUT, ends - time.monotonic())):
                    message = await receive()
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
            pieces.append(piece)
    except BaseException:
        room.give_back(size)
        raise
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def read_wanted(body: bytes, content_type: bytes, *, exactly_one_model: bool) -> Wanted:
    """What the body says. `exactly_one_model` is for keys that may not use every model: whoever reads the body, and
    however, must find the same one.

    Raises:
        BadRequestError: it is neither a JSON object nor a form, or a value is not of its type.
    """
    if content_type[:19].lower() == b"multipart/form-data":
        wanted, named = _read_form(body, content_type)
    else:
        wanted = _read_json(body)
        named = _count_models(body) if exactly_one_model else 1
    if wanted.model is not None and not 0 < len(wanted.model) <= _LONGEST_MODEL:
        raise _bad_model()
    if exactly_one_model and (wanted.model is None or named != 1):
        raise BadRequestError(
            "This key may use certain models only: the request has to name one model, once.",
            code="model_required",
            param="model",
        )
    return wanted


def names_a_model(body: bytes) -> bool:
    """Whether any parser finds a `model` in this JSON.

    Raises:
        BadRequestError: it is not JSON.
    """
    return _parse_for_models(body) > 0


def ask_for_usage(body: bytes, wanted: Wanted) -> bytes:
    """The same request, which asks for the usage of its stream (OpenAI API reference, `stream_options`)."""
    fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    options = {**(wanted.stream_options or {}), "include_usage": True}
    fields["stream_options"] = msgspec.Raw(msgspec.json.encode(options))
    return msgspec.json.encode(fields)


def _read_json(body: bytes) -> Wanted:
    try:
        wanted = _DECODER.decode(body)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$.")
        param = path.partition(".")[0].strip("`") or None
        raise BadRequestError(f"{param or 'The body'}: {message}.", param=param) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequestError(f"The body is not JSON: {error}.", code="invalid_json") from None
    return wanted


def _count_models(body: bytes) -> int:
    """How often the object has the key `model`: parsers differ on which of two counts, and those of Go, which many
    backends are written in, take `Model` for it, too.
    """
    if body.lower().count(b'"model"') == 1 and b"\\u00" not in body:
        return 1
    return _parse_for_models(body)


def _parse_for_models(body: bytes) -> int:
    pairs: list[tuple[str, Any]] = []

    def keep(found: list[tuple[str, Any]]) -> dict[str, Any]:
        pairs[:] = found  # the outermost object is the last to be complete
        return {}

    try:
        json.loads(body, object_pairs_hook=keep)
    except RecursionError:
        raise BadRequestError("The body is nested too deeply.", code="invalid_json") from None
    except ValueError as error:  # in what the decoder above has skipped
        raise BadRequestError(f"The body is not JSON: {error}.", code="invalid_json") from None
    return sum(key.lower() == "model" for key, _ in pairs)


def _read_form(body: bytes, content_type: bytes) -> tuple[Wanted, int]:
    """`model` and `stream` of a form (RFC 7578); files are not looked into. What another parser may read otherwise, a
    part with two names or a form with two boundaries, is none.
    """
    if len(_BOUNDARIES.findall(content_type)) > 1:
        raise BadRequestError("The body is not a form: it has two boundaries.")
    _, options = parse_options_header(content_type.decode("latin-1"))  # type: ignore[no-untyped-call]  # multipart's
    found: dict[str, list[bytes]] = {"model": [], "stream": []}
    field = None
    try:
        with PushMultipartParser(options.get("boundary", ""), strict=True) as parser:
            for part in parser.parse(body):
                if isinstance(part, MultipartSegment):
                    if _names(part) != 1:
                        raise BadRequestError("The body is not a form: a part has two names.")
                    field = found.get(part.name or "")
                    if field is not None:
                        field.append(b"")
                elif part and field is not None:
                    field[-1] += part
                    if len(field[-1]) > 4 * _LONGEST_MODEL:
                        raise _bad_model()
    except (MultipartError, ValueError) as error:
        raise BadRequestError(f"The body is not a form: {error}.") from None
    models = found["model"]
    try:
        model = models[-1].decode() if models else None
    except UnicodeDecodeError:
        raise BadRequestError("model: is not UTF-8.", param="model") from None
    return Wanted(model=model, stream=found["stream"][-1:] == [b"true"]), len(models)


def _names(part: MultipartSegment) -> int:
    """How many names a part has, whoever reads it (RFC 6266, 4.3 has another way to write one)."""
    return sum(len(_NAMES.findall(value)) for name, value in part.headerlist if name == "Content-Disposition")


def _bad_model() -> BadRequestError:
    return BadRequestError("model: must have 1 to 1000 characters.", param="model")


def _too_large(limit: int) -> TooLargeError:
    return TooLargeError(f"The request's body is larger than {limit} bytes.")
