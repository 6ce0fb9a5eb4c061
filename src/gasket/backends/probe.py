"""Asking a backend for its models, and saying in words what is wrong with it."""

from __future__ import annotations

import time

import aiohttp
import msgspec
from yarl import URL

from gasket.backends.models import OpenAIBackend
from gasket.backends.schemas import ProbeOut
from gasket.upstream import UpstreamClient, endpoint, failure_in_words

ANSWER_SECONDS = 10.0
"""What a probe waits for the whole answer, beyond the backend's connect_timeout."""
LARGEST_ANSWER = 1_048_576
"""Bytes of an answer that are read."""


class _Model(msgspec.Struct):
    id: str


class _ModelList(msgspec.Struct):
    data: list[_Model] | None  # some servers that have no model say null


_models = msgspec.json.Decoder(_ModelList)


def parse_models(body: bytes) -> list[str]:
    """The models' names of an answer to `GET /v1/models`, in its order, each once.

    (OpenAI API reference, "List models"; fields that it does not know are passed over.)

    Raises:
        ValueError: it is no such list; the message says what it is, to follow "the answer".
    """
    if not body.strip():
        raise ValueError("is empty")
    if body.lstrip().startswith(b"<"):
        raise ValueError("is a web page, not JSON")
    try:
        return list(dict.fromkeys(model.id for model in _models.decode(body).data or ()))
    except msgspec.ValidationError:
        raise ValueError("is JSON, but no list of models: each entry of its `data` should have an `id`") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ValueError("is not JSON") from None


class _UnfitError(Exception):
    """What is wrong with an answer, to follow the backend's name."""


async def probe(backend: OpenAIBackend, upstream: UpstreamClient) -> ProbeOut:
    """Connect, ask for the models, and judge the answer. Whatever the backend does is a result, never an error."""
    result = ProbeOut(ok=False, detail="", models=[], status=None, duration_ms=0)
    began = time.monotonic()
    try:
        response = await upstream.send(
            "GET",
            _url(backend),
            headers=_headers(backend),
            timeouts=aiohttp.ClientTimeout(
                connect=backend.connect_timeout, total=backend.connect_timeout + ANSWER_SECONDS
            ),
            skip_tls_verify=backend.skip_tls_verify,
        )
        try:
            result.status = response.status
            _check_status(backend, response)
            result.models = _list_of(await _read(response))
        finally:
            response.close()
        result.ok = True
        result.detail = f"Backend {backend.name!r} answers and lists {_count(result.models)}."
    except _UnfitError as error:
        result.detail = f"Backend {backend.name!r} {error}."
    except (aiohttp.ClientError, OSError) as error:
        result.detail = failure_in_words(error, backend.name)
    result.duration_ms = round((time.monotonic() - began) * 1000)
    return result


def _url(backend: OpenAIBackend) -> URL:
    try:
        return endpoint(backend.base_url, "models")
    except ValueError:
        raise _UnfitError("has a base_url that is no URL; set it anew") from None


def _headers(backend: OpenAIBackend) -> dict[str, str]:
    if backend.credential_unreadable:
        raise _UnfitError("has a credential that no key in GASKET_SECRET_KEY opens; set api_key again")
    headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
    return headers | ({"Authorization": f"Bearer {backend.api_key}"} if backend.api_key else {})


def _check_status(backend: OpenAIBackend, response: aiohttp.ClientResponse) -> None:
    """Raise _UnfitError unless the answer is a success."""
    asked = response.url.path
    match response.status:
        case status if 200 <= status < 300:
            return
        case 401 | 403 as status if backend.has_api_key:
            raise _UnfitError(f"refuses the credential ({status}); set api_key to one that it knows")
        case 401 | 403 as status:
            raise _UnfitError(f"wants a credential ({status}) and none is stored; set api_key")
        case 404 | 405 as status:
            raise _UnfitError(f"has no {asked} ({status}); look whether base_url is right")
        case status if 300 <= status < 400:
            raise _UnfitError(f"sends {asked} elsewhere ({status}{_target(response)}); set base_url to where it leads")
        case status:
            raise _UnfitError(f"answers {status} to GET {asked}")


def _target(response: aiohttp.ClientResponse) -> str:
    """Where a redirect leads, without what may be secret in a URL."""
    try:
        target = response.url.join(URL(response.headers.get("Location", "")))
        return f", to {target.with_user(None).with_query(None).with_fragment(None)}"[:300]
    except ValueError:
        return ""


async def _read(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > LARGEST_ANSWER:
            raise _UnfitError(f"answers with more than {LARGEST_ANSWER // 1024} KiB, which is too large for a list")
    return bytes(body)


def _list_of(body: bytes) -> list[str]:
    try:
        return parse_models(body)
    except ValueError as error:
        raise _UnfitError(f"does not speak the OpenAI API: the answer {error}") from None


def _count(models: list[str]) -> str:
    return "1 model" if len(models) == 1 else f"{len(models) or 'no'} models"
