"""Finds the error in an answer whose status says 200. Some backends answer so.

Where it is found before anything is passed on, the answer is a failure: another backend is asked, and nothing is
charged. In the middle of a stream it passes on, and the request counts as one that failed.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any, NamedTuple

import msgspec

from gasket.proxy.events import begin_like_events, event_data, split_events
from gasket.upstream.client import Response

READ_AHEAD_WITHIN = 2.0
"""Seconds for which an answer may be silent before it is passed on unread: the client waits for its head meanwhile."""
_MOST_READ_AHEAD = 64 * 1024

_ERROR = rb'"error"\s*+:\s*+(?!null)|"type"\s*+:\s*+"error"'
_HAS_ERROR = re.compile(_ERROR)
_BEGINS_LIKE_ERROR = re.compile(rb"\s*+\{\s*+(?:" + _ERROR + rb")")
_SHORTEST_BEGINNINGS = (b'{"error":', b'{"type":"error"')
NAMES_ERROR = b'error"'
"""Every event that tells of an error has it. To look for it first is cheap."""
_FAILED = "response.failed"
"""The last event of the Responses API when it fails."""
_STATUS = re.compile("[45][0-9]{2}")
_OF_THE_REQUEST = frozenset(
    {
        "content_filter",
        "content_policy_violation",
        "context_length_exceeded",
        "empty_image_file",
        "failed_to_download_image",
        "image_content_policy_violation",
        "image_file_not_found",
        "image_file_too_large",
        "image_generation_user_error",
        "image_parse_error",
        "image_too_large",
        "image_too_small",
        "invalid_base64_image",
        "invalid_image",
        "invalid_image_format",
        "invalid_image_mode",
        "invalid_image_url",
        "invalid_prompt",
        "invalid_request_error",
        "request_too_large",
        "unsupported_image_media_type",
    }
)
"""Types and codes of errors that blame the request (OpenAI API reference, `ResponseError`; Anthropic's, "Errors")."""
_BLANK_LINE = re.compile(rb"(?:\r\n|\n|\r(?!\n)){2}")


class ErrorInSuccess(NamedTuple):
    """What the backend says of its error. `code` is an HTTP status, or None where there is none; `blames_request` is
    what its type and its code say in words.
    """

    message: str
    code: int | None
    blames_request: bool

    @property
    def fault_of_client(self) -> bool:
        """Whether the request is to blame, as far as the error tells: that says nothing about the backend."""
        if self.code is None:
            return self.blames_request
        return 400 <= self.code < 500 and self.code not in (408, 429)


class _Answer(msgspec.Struct):
    error: Any = None
    object: Any = None
    type: Any = None
    message: Any = None
    code: Any = None
    choices: Any = None
    data: Any = None
    output: Any = None
    content: Any = None
    response: Any = None


async def find_error(response: Response) -> ErrorInSuccess | None:
    """The error that the answer is, if it is one. What was read stays in the response, to be read again.

    Raises:
        UpstreamError: the answer breaks off within what is looked at.
    """
    head = response.arrived()
    if _is_decided(head, response):  # nearly always: a small answer comes in one piece, a large one is none
        response.unread(head)
        return _error_in(head)
    try:
        async with asyncio.timeout(READ_AHEAD_WITHIN):
            while not _is_decided(head, response):
                head += await response.piece()
    except TimeoutError:
        pass
    response.unread(head)
    return _error_in(head)


def _is_decided(head: bytes, response: Response) -> bool:
    """Whether more bytes could not tell more."""
    if response.at_end or len(head) > _MOST_READ_AHEAD:
        return True
    start = head[:200].lstrip()
    if start.startswith(b"{"):
        compact = b"".join(start.split())
        return not (_BEGINS_LIKE_ERROR.match(head) or any(known.startswith(compact) for known in _SHORTEST_BEGINNINGS))
    events = begin_like_events(head)
    return events is False or (events is True and _first_event(head) is not None)


def _first_event(head: bytes) -> bytes | None:
    """The first whole event that is no comment, its data alone."""
    start = 0
    for border in _BLANK_LINE.finditer(head):
        if data := event_data(head[start : border.start()]):
            return data
        start = border.end()
    return None


def _error_in(head: bytes) -> ErrorInSuccess | None:
    if NAMES_ERROR not in head or _HAS_ERROR.search(head) is None:
        return None
    # The end of a stream ends its last event, too.
    body = head if head[:200].lstrip().startswith(b"{") else _first_event(head + b"\n\n") or b""
    try:
        answer = msgspec.json.decode(body, type=_Answer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if answer.object == "response":  # the Responses API tells of its failures so, and its clients know that
        return None
    if answer.choices or answer.data or answer.output or answer.content:
        return None
    return _error_of(answer)


def error_in_events(block: bytes) -> ErrorInSuccess | None:
    """The error that one of these events tells of, in the middle of a stream: it passes on as it came."""
    if _HAS_ERROR.search(block) is None:
        return None
    for event in split_events(block):
        if NAMES_ERROR not in event:
            continue
        try:
            answer = msgspec.json.decode(event_data(event), type=_Answer)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue
        if answer.type == _FAILED and isinstance(answer.response, dict):
            answer.error = answer.response.get("error")
        if (error := _error_of(answer)) is not None:
            return error
    return None


def _error_of(answer: _Answer) -> ErrorInSuccess | None:
    kind: Any = None
    if isinstance(answer.error, dict) and answer.error:
        message, code, kind = (answer.error.get(name) for name in ("message", "code", "type"))
    elif isinstance(answer.error, str) and answer.error:
        message, code = answer.error, answer.code
    elif answer.type == "error" and answer.error is None:  # an event of the Responses API
        message, code = answer.message, answer.code
    else:
        return None
    status = int(str(code)) if _STATUS.fullmatch(str(code)) else None
    blames_request = any(isinstance(word, str) and word in _OF_THE_REQUEST for word in (kind, code))
    return ErrorInSuccess(message if isinstance(message, str) else "it does not say which", status, blames_request)
