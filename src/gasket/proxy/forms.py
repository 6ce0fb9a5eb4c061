"""A form (RFC 7578), looked at for the model that decides where it goes. Files are not looked into. Pure."""

from __future__ import annotations

import re

from multipart import MultipartError, MultipartSegment, PushMultipartParser, parse_options_header

from gasket.server.errors import BadRequestError

LONGEST_MODEL = 1000
_MOST_PARTS = 100
_LONGEST_HEADER = 1024
"""Bytes of one header of a part. With these bounds the costliest form takes about 3 ms, in which nothing else runs."""
_CHARSET = rb'\s*;\s*charset="?utf-?8"?'
UNAMBIGUOUS_FORM = re.compile(
    rb"multipart/form-data(?:" + _CHARSET + rb")?"
    rb"\s*;\s*boundary=(?:[\w!#$%&'*+.^`|~-]{1,200}|\"[^\";\\]{1,200}\")(?:" + _CHARSET + rb")?\s*",
    re.IGNORECASE,
)
"""Content types in which every parser finds the same boundary and the same characters."""
# Possessive: where there is no `=`, nothing is tried once more with a blank less.
_BOUNDARIES = re.compile(rb";\s*boundary(?:\*[^=;]*+)?+\s*=", re.IGNORECASE)
_NAMES = re.compile(r";\s*name(?:\*[^=;]*+)?+\s*=", re.IGNORECASE)
_QUOTED = re.compile(r'"(?:[^"\\]++|\\.)*+"?')
_NAME_FIRST = re.compile(r"form-data\s*;\s*name=", re.IGNORECASE)
_NAME = re.compile(rb'^content-disposition\s*:\s*form-data\s*;\s*name="?([^";\s]+)', re.IGNORECASE | re.MULTILINE)
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.\[\]-]{1,200}")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


def is_form(content_type: bytes) -> bool:
    """Whether a body of this type is read as a form."""
    return content_type[:19].lower() == b"multipart/form-data"


def field_of(name: str) -> str | None:
    """The field that a parameter of a form or a query is about, for one server or another: of `Model`, `model[]` and
    `model.x` it is `model`. None: servers may differ on how it is decoded.
    """
    return re.split(r"[.\[]", name.lower(), maxsplit=1)[0] if _PLAIN_NAME.fullmatch(name) else None


def read_form(body: bytes, content_type: bytes, *, strictly: bool) -> tuple[str | None, int]:
    """The `model` of a form, and how often it names one. What another parser may read otherwise, a part
    with two names or a form with two boundaries, is none; with `strictly` there is no room for interpretation.

    Raises:
        BadRequestError: it is no form, or its model is none.
    """
    if len(_BOUNDARIES.findall(content_type)) > 1:
        raise _no_form("it has two boundaries")
    _, options = parse_options_header(content_type.decode("latin-1"))  # type: ignore[no-untyped-call]  # multipart's
    boundary = options.get("boundary", "")
    models: list[bytes] = []
    parts, in_model = 0, False
    try:
        with PushMultipartParser(
            boundary, strict=True, max_segment_count=_MOST_PARTS, max_header_size=_LONGEST_HEADER
        ) as parser:
            for part in parser.parse(body):
                if isinstance(part, MultipartSegment):
                    parts += 1
                    if _names(part, strictly=strictly) != 1:
                        raise _no_form("a part has two names")
                    in_model = (_strictly_named(part) if strictly else part.name) == "model"
                    if in_model:
                        models.append(b"")
                elif part and in_model:
                    models[-1] += part
                    if len(models[-1]) > 4 * LONGEST_MODEL:
                        raise bad_model()
    except (MultipartError, ValueError) as error:
        raise _no_form(str(error)) from None
    if strictly and body.count(b"--" + boundary.encode("latin-1")) != parts + 1:
        raise _no_form("its boundary is in one of its parts")  # where other line breaks make it one
    try:
        model = models[-1].decode() if models else None
    except UnicodeDecodeError:
        raise BadRequestError("model: is not UTF-8.", param="model") from None
    return model, len(models)


def replace_model_in_form(body: bytes, content_type: bytes, model: str) -> bytes:
    """The same form with another model. `read_form` has found, strictly, that it names one, once."""
    _, options = parse_options_header(content_type.decode("latin-1"))  # type: ignore[no-untyped-call]  # multipart's
    boundary = b"--" + str(options["boundary"]).encode("latin-1")
    pieces = body.split(boundary)
    for number, piece in enumerate(pieces):
        head, blank, _ = piece.partition(b"\r\n\r\n")
        named = _NAME.search(head)
        if named is not None and field_of(named[1].decode("latin-1")) == "model":
            pieces[number] = head + blank + model.encode() + b"\r\n"
    return boundary.join(pieces)


def bad_model() -> BadRequestError:
    """It is empty, or too long."""
    return BadRequestError("model: must have 1 to 1000 characters.", param="model")


def _names(part: MultipartSegment, *, strictly: bool) -> int:
    """How many names a part has, for any parser (RFC 6266, 4.3 has another way to write one). With `strictly` also in
    quotes, which not everybody ends at the same place: else a file may have any name.
    """
    dispositions = (value for name, value in part.headerlist if name == "Content-Disposition")
    return sum(len(_NAMES.findall(value if strictly else _QUOTED.sub("", value))) for value in dispositions)


def _strictly_named(part: MultipartSegment) -> str:
    """The field of the part, if no parser can find a second name in its header."""
    for name, value in part.headerlist:
        if _CONTROL.search(value) or (name == "Content-Disposition" and not _NAME_FIRST.match(value)):
            raise _no_form("a part has a header that can be read in two ways")
        if name == "Content-Type" and value.lower().startswith("multipart/"):
            raise _no_form("a part is a form itself")
    field = field_of(part.name or "")
    if field is None:
        raise _no_form("a part's name has characters other than letters, digits and _ . - [ ]")
    if field == "model" and part.filename is not None:
        raise _no_form("its model is a file")
    return field


def _no_form(why: str) -> BadRequestError:
    return BadRequestError(f"The body is not a form: {why}.")
