"""What a request or an answer costs, in tokens, where no backend says it. Pure.

Text is a token for 4 bytes. Data in base64 is none: a picture, sound or a file has a fixed estimate, whatever its size.
"""

from __future__ import annotations

import re
from itertools import islice
from typing import NamedTuple

BYTES_OF_A_TOKEN = 4
"""What OpenAI gives as a rule of thumb for English text."""
PICTURE = 1000
AUDIO = 1000
FILE = 3000
"""Tokens of one of these; a video is a file."""

_SHORTEST = 1024
"""Bytes in base64 that are taken for data."""
_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/-_=\\"
"""Both alphabets of RFC 4648, and the backslash: some write `/` as `\\/`, and line ends as `\\n`."""
_MARKS = bytes(ord("A") if byte in _ALPHABET else ord(" ") for byte in range(256))
_RUN = b"A" * _SHORTEST
_SAMPLE = 256
_MOST = 1000
"""Pieces of data, and parts, that are looked at: a body that is made of them must hold up nobody."""
_LOWER, _UPPER, _DIGITS = (bytes(range(ord(first), ord(last) + 1)) for first, last in ("az", "AZ", "09"))
_DATA_URL = re.compile(rb"data:(\w*)[^\"]{0,100};base64,\Z", re.IGNORECASE)
_NAMED = re.compile(
    rb'"(data|file_data|b64_json|bytes|image|images|image_url|audio|video|url)"\s*:\s*\[?\s*"\Z', re.IGNORECASE
)
_BEFORE = 160
_PART = re.compile(
    rb'"type"\s*:\s*"'
    rb'(?:(image|image_url|input_image)|(audio|audio_url|input_audio)|file|input_file|document|video|video_url|input_video)"'
)


class Data(NamedTuple):
    """A piece of data in base64: where it stands, and what it is, `image` or `audio`, as far as that is said."""

    start: int
    end: int
    kind: bytes


def find_data(text: bytes) -> list[Data]:
    """The data in base64 within JSON: behind `;base64,`, or as a whole string that is no text."""
    marks = text.translate(_MARKS)
    found: list[Data] = []
    end = 0
    while len(found) < _MOST and (start := marks.find(_RUN, end)) >= 0:
        end = marks.find(b" ", start)
        end = len(text) if end < 0 else end
        before = text[max(0, start - _BEFORE) : start]
        if before.endswith(b";base64,") and (url := _DATA_URL.search(before)) is not None:
            found.append(Data(start, end, url[1].lower()))
        elif (named := _NAMED.search(before)) is not None:
            found.append(Data(start, end, named[1].lower()[:5]))
        elif _is_random(text[start : start + _SAMPLE]):
            found.append(Data(start, end, b""))
    return found


def estimate_request(size: int, body: bytes) -> int:
    """The tokens of a request of so many bytes. A picture that is named by its URL counts as one that is sent along."""
    data = find_data(body)
    text = body
    if data:
        ends = [0, *(piece.end for piece in data)]
        starts = [*(piece.start for piece in data), len(body)]
        text = b"".join(body[end:start] for end, start in zip(ends, starts, strict=True))
    parts = [PICTURE if part[1] else AUDIO if part[2] else FILE for part in islice(_PART.finditer(text), _MOST)]
    of_no_part = [{b"image": PICTURE, b"audio": AUDIO}.get(piece.kind, FILE) for piece in data[len(parts) :]]
    return max(size - (len(body) - len(text)), 0) // BYTES_OF_A_TOKEN + sum(parts) + sum(of_no_part)


class DataMeter:
    """Is fed a plain answer in pieces, keeps none of it, and says how much of it is data in base64."""

    __slots__ = ("_open", "pieces", "size")

    def __init__(self) -> None:
        self.size = 0
        """Bytes of data."""
        self.pieces = 0
        """Pictures, sounds and files."""
        self._open = False
        """Whether the bytes so far end within data."""

    def feed(self, text: bytes) -> None:
        """Look at the next bytes."""
        found = find_data(text)
        if self._open:
            end = text.translate(_MARKS).find(b" ")
            end = len(text) if end < 0 else end
            self.size += end
            self._open = end == len(text)
            found = [data for data in found if data.start >= end]
        for data in found:
            self.size += data.end - data.start
            self.pieces += 1
            self._open = data.end == len(text)


def estimate_answer(size: int, data: DataMeter) -> int:
    """The tokens of a plain answer of so many bytes. What its data is stands elsewhere: all of it counts as sound."""
    return max(size - data.size, 0) // BYTES_OF_A_TOKEN + data.pieces * AUDIO


def _is_random(sample: bytes) -> bool:
    """Whether there are upper and lower case and digits, as in base64 of anything, and hardly in a word."""
    return all(len(sample.translate(None, letters)) < len(sample) for letters in (_LOWER, _UPPER, _DIGITS))
