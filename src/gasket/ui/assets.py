"""The stylesheet, the script and the icon: from memory, under addresses that change with their content.

They are answered in every state of a replica, also while it starts, and without Litestar.
"""

from __future__ import annotations

from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec

from gasket.ui.headers import SECURITY_FIELDS

PREFIX = "/ui/static/"

_FOLDER = Path(__file__).with_name("static")
_MEDIA_TYPES = {".css": b"text/css; charset=utf-8", ".js": b"text/javascript; charset=utf-8", ".svg": b"image/svg+xml"}
_FOR_A_YEAR = (b"cache-control", b"public, max-age=31536000, immutable")
_NOT_KEPT = (b"cache-control", b"no-store")


class Asset(msgspec.Struct, frozen=True):
    """One file; `address` has a digest of its content."""

    address: str
    media_type: bytes
    content: bytes


@cache
def assets() -> dict[str, Asset]:
    """All files by their names, read at the first call."""
    found = {}
    for path in sorted(_FOLDER.iterdir()):
        if path.suffix in _MEDIA_TYPES:
            content = path.read_bytes()
            address = f"{PREFIX}{sha256(content).hexdigest()[:12]}/{path.name}"
            found[path.name] = Asset(address, _MEDIA_TYPES[path.suffix], content)
    return found


def address_of(name: str) -> str:
    """Where a page finds the file of this name."""
    return assets()[name].address


async def answer_asset(scope: Any, send: Any) -> None:
    """Answer a request below `PREFIX`. An address of another release gets today's file, which no cache keeps."""
    asset = assets().get(scope["path"].rpartition("/")[2])
    if asset is None or scope["method"] not in ("GET", "HEAD"):
        status, body, fields = 404, b"There is no such file.\n", [(b"content-type", b"text/plain"), _NOT_KEPT]
    else:
        status, body = 200, asset.content
        fields = [(b"content-type", asset.media_type), _FOR_A_YEAR if scope["path"] == asset.address else _NOT_KEPT]
    fields += [(b"content-length", b"%d" % len(body)), *SECURITY_FIELDS]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
