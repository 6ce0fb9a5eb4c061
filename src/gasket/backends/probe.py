"""Asking a backend for its models, and saying in words what is wrong with it."""

from __future__ import annotations

import asyncio
import time
from urllib.parse import urljoin, urlsplit

import msgspec

from gasket.backends.models import OpenAIBackend
from gasket.backends.schemas import ProbeOut
from gasket.upstream.address import Address, address_of
from gasket.upstream.client import Response, Timeouts, UpstreamClient
from gasket.upstream.failures import UpstreamError

ANSWER_SECONDS = 10.0
"""What a probe waits for the whole answer, beyond the backend's connect_timeout."""
LARGEST_ANSWER = 1_048_576
"""Bytes of an answer that are read."""

_PATH = "/models"
_FIELDS = [(b"accept", b"application/json"), (b"accept-encoding", b"identity")]


class _Model(msgspec.Struct):
    id: str


class _ModelList(msgspec.Struct):
    data: list[msgspec.Raw] | None  # some servers that have no model say null


_list = msgspec.json.Decoder(_ModelList)
_model = msgspec.json.Decoder(_Model)


class ModelListError(Exception):
    """What is wrong with a backend that was asked for its models, to follow its name; its status, if it answered."""

    def __init__(self, words: str, status: int | None = None) -> None:
        super().__init__(words)
        self.status = status


def parse_models(body: bytes) -> dict[str, msgspec.Raw]:
    """The models of an answer to `GET /v1/models`, as JSON by their names, in its order, each once.

    (OpenAI API reference, "List models"; fields that it does not know are passed over.)

    Raises:
        ValueError: it is no such list; the message says what it is, to follow "the answer".
    """
    if not body.strip():
        raise ValueError("is empty")
    if body.lstrip().startswith(b"<"):
        raise ValueError("is a web page, not JSON")
    models: dict[str, msgspec.Raw] = {}
    try:
        for raw in _list.decode(body).data or ():
            models.setdefault(_model.decode(raw).id, msgspec.Raw(bytes(raw)))
    except msgspec.ValidationError:
        raise ValueError("is JSON, but no list of models: each entry of its `data` should have an `id`") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ValueError("is not JSON") from None
    return models


async def list_models(
    upstream: UpstreamClient, base_url: str, credential: str | None, *, connect_timeout: float, skip_tls_verify: bool
) -> dict[str, msgspec.Raw]:
    """Ask a backend for its models, within `connect_timeout` and ten seconds more.

    Raises:
        ModelListError: there is no such list to be had.
    """
    try:
        address = address_of(base_url)
    except ValueError:
        raise ModelListError("has a base_url that is no URL; set it anew") from None
    fields = [*_FIELDS, (b"authorization", f"Bearer {credential}".encode())] if credential else _FIELDS
    response: Response | None = None
    status = None
    try:
        async with asyncio.timeout(connect_timeout + ANSWER_SECONDS):
            response = await upstream.send(
                "GET",
                address,
                address.target(_PATH),
                fields=fields,
                timeouts=Timeouts(connect_timeout, ANSWER_SECONDS, ANSWER_SECONDS),
                skip_tls_verify=skip_tls_verify,
            )
            status = response.status
            _check_status(address, response, credential)
            return parse_models(await _read(response))
    except UpstreamError as error:
        raise ModelListError(str(error), status) from error
    except TimeoutError:
        raise ModelListError("did not answer in time", status) from None
    except ValueError as error:
        raise ModelListError(f"does not speak the OpenAI API: the answer {error}", status) from None
    finally:
        if response is not None:
            response.close()


async def probe(backend: OpenAIBackend, upstream: UpstreamClient) -> ProbeOut:
    """Connect, ask for the models, and judge the answer. Whatever the backend does is a result, never an error."""
    result = ProbeOut(ok=False, detail="", models=[], status=None, duration_ms=0)
    began = time.monotonic()
    try:
        if backend.credential_unreadable:
            raise ModelListError("has a credential that no key in GASKET_SECRET_KEY opens; set api_key again")
        models = await list_models(
            upstream,
            backend.base_url,
            backend.api_key,
            connect_timeout=backend.connect_timeout,
            skip_tls_verify=backend.skip_tls_verify,
        )
        result.ok, result.models, result.status = True, list(models), 200
        result.detail = f"Backend {backend.name!r} answers and lists {_count(result.models)}."
    except ModelListError as error:
        result.status = error.status
        result.detail = f"Backend {backend.name!r} {error}."
    result.duration_ms = round((time.monotonic() - began) * 1000)
    return result


def _check_status(address: Address, response: Response, credential: str | None) -> None:
    """Raise ModelListError unless the answer is what was asked for."""
    asked, status = address.target(_PATH).decode(), response.status
    if status == 200:
        return
    if status in (401, 403) and credential:
        words = f"refuses the credential ({status}); set api_key to one that it knows"
    elif status in (401, 403):
        words = f"wants a credential ({status}) and none is stored; set api_key"
    elif status in (404, 405):
        words = f"has no {asked} ({status}); look whether base_url is right"
    elif 300 <= status < 400:
        words = f"sends {asked} elsewhere ({status}{_target(address, response)}); set base_url to where it leads"
    else:
        words = f"answers {status} to GET {asked}"
    raise ModelListError(words, status)


def _target(address: Address, response: Response) -> str:
    """Where a redirect leads, without what may be secret in a URL."""
    here = f"{'https' if address.tls else 'http'}://{address.authority.decode()}{address.target(_PATH).decode()}"
    try:
        parts = urlsplit(urljoin(here, response.field(b"location").decode("latin-1")))
    except ValueError:
        return ""
    return f", to {parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"[:300]


async def _read(response: Response) -> bytes:
    try:
        return await response.read(LARGEST_ANSWER)
    except ValueError:
        raise ModelListError(
            f"answers with more than {LARGEST_ANSWER // 1024} KiB, which is too large for a list", response.status
        ) from None


def _count(models: list[str]) -> str:
    return "1 model" if len(models) == 1 else f"{len(models) or 'no'} models"
