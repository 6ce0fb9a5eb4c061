"""Asking a backend for its models, and saying in words what is wrong with it."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import NamedTuple
from urllib.parse import urljoin, urlsplit

import msgspec

from gasket.backends.base_urls import how_to_change, other_base_urls
from gasket.backends.headers import decode_headers, request_fields
from gasket.backends.model_list import LARGEST_LIST, read_models
from gasket.backends.models import OpenAIBackend
from gasket.backends.schemas import ProbeOut
from gasket.upstream.address import Address, address_of
from gasket.upstream.client import Response, Timeouts, UpstreamClient
from gasket.upstream.connection import Fields
from gasket.upstream.failures import UpstreamError
from gasket.upstream.routes import Route, route_of

ANSWER_SECONDS = 10.0
"""Seconds for the whole answer of a probe, beyond the backend's connect_timeout."""

_MODELS = "/models"
_CHAT = "/chat/completions"
_FIELDS: Fields = [(b"accept", b"application/json"), (b"accept-encoding", b"identity")]
_OF_JSON = (b"content-type", b"application/json")
_EMPTY_REQUEST = b"{}"
_REFUSES_EMPTY_REQUEST = (400, 422)
# It answered, and neither refused the credential nor is it overloaded: then the path may be wrong.
_PERHAPS_ANOTHER_PATH = frozenset(range(200, 500)) - {401, 403, 429}


class ModelListError(Exception):
    """What is wrong with a backend that was asked for its models.

    `words` follow its name, `advice` follows them. `status` is that of its answer, if it answered.
    """

    def __init__(self, words: str, status: int | None = None, *, advice: str | None = None) -> None:
        super().__init__(f"{words}; {advice}" if advice else words)
        self.words = words
        self.status = status


class ModelSource(NamedTuple):
    """A backend, as far as it takes to ask it. `fields` are its own header fields; the timeout is in seconds."""

    base_url: str
    fields: Fields
    has_credential: bool
    connect_timeout: float
    route: Route

    def __repr__(self) -> str:
        return "ModelSource(...)"


class _Form(NamedTuple):
    """A base URL that works, and the models that are listed there; None: only chats are answered."""

    base_url: str
    models: list[str] | None


async def list_models(upstream: UpstreamClient, source: ModelSource) -> dict[str, msgspec.Raw]:
    """Ask a backend for its models, within its connect_timeout and ten seconds more.

    Raises:
        ModelListError: there is no such list to be had.
    """
    response: Response | None = None
    status = None
    try:
        async with asyncio.timeout(source.connect_timeout + ANSWER_SECONDS):
            response = await _send(upstream, source, "GET", _MODELS)
            status = response.status
            _check_status(_address(source), response, has_credential=source.has_credential)
            return await read_models(await _read(response))
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
    """Connect, ask for the models, and judge the answer. Whatever the backend does is a result, never an error.

    Where there is no list, other forms of the base URL are tried on the same server, and one that works is named.
    """
    result = ProbeOut(ok=False, detail="", models=[], status=None, base_url=None, duration_ms=0)
    began = time.monotonic()
    try:
        if backend.credential_unreadable:
            raise ModelListError("has a credential that no key in GASKET_SECRET_KEY opens; set api_key again")
        source = source_of(backend)
        result.models = list(await list_models(upstream, source))
        result.ok, result.status = True, 200
        words = f"answers and lists {_count(result.models)}"
    except ModelListError as error:
        result.status, words = error.status, str(error)
        left = began + backend.connect_timeout + ANSWER_SECONDS - time.monotonic()
        if error.status in _PERHAPS_ANOTHER_PATH and left > 0:
            form = await _find_form(upstream, source, within=left)
            if form is not None and form.base_url == backend.base_url:
                result.ok, words = True, f"answers {_CHAT}, but {error.words}: which models it has is not known"
            elif form is not None:
                result.base_url = form.base_url
                does = f"answers {_CHAT}" if form.models is None else f"lists {_count(form.models)}"
                words = f"{error.words}; {how_to_change(backend.base_url, form.base_url)}: there it {does}"
    result.detail = f"Backend {backend.name!r} {words}."
    result.duration_ms = round((time.monotonic() - began) * 1000)
    return result


def source_of(backend: OpenAIBackend) -> ModelSource:
    """What it takes to ask a stored backend, whose credential can be read."""
    fields = request_fields(
        backend.api_key, backend.credential_header, backend.credential_scheme, decode_headers(backend.headers)
    )
    return ModelSource(
        base_url=backend.base_url,
        fields=fields,
        has_credential=backend.has_api_key,
        connect_timeout=backend.connect_timeout,
        route=route_of(backend.skip_tls_verify, backend.proxy_url, backend.client_certificate),
    )


async def _find_form(upstream: UpstreamClient, source: ModelSource, *, within: float) -> _Form | None:
    """A form of the base URL that works, if one is found within so many seconds.

    What lists its models is preferred to what only knows chats: that is asked with an empty request, which no model has
    to answer.
    """
    others = [source._replace(base_url=other) for other in other_base_urls(source.base_url)]
    with suppress(TimeoutError):
        async with asyncio.timeout(within):
            for other in others:
                with suppress(ModelListError):
                    return _Form(other.base_url, list(await list_models(upstream, other)))
            for form in (source, *others):
                if await _answers_chats(upstream, form):
                    return _Form(form.base_url, None)
    return None


async def _answers_chats(upstream: UpstreamClient, source: ModelSource) -> bool:
    try:
        response = await _send(upstream, source, "POST", _CHAT)
    except UpstreamError:
        return False
    response.close()
    return response.status in _REFUSES_EMPTY_REQUEST


async def _send(upstream: UpstreamClient, source: ModelSource, method: str, path: str) -> Response:
    address = _address(source)
    empty = method == "POST"
    return await upstream.send(
        method,
        address,
        address.target(path),
        fields=[*_FIELDS, *source.fields, *([_OF_JSON] if empty else [])],
        body=_EMPTY_REQUEST if empty else b"",
        timeouts=Timeouts(source.connect_timeout, ANSWER_SECONDS, ANSWER_SECONDS),
        route=source.route,
    )


def _address(source: ModelSource) -> Address:
    try:
        return address_of(source.base_url)
    except ValueError:
        raise ModelListError("has a base_url that is no URL", advice="set it anew") from None


def _check_status(address: Address, response: Response, *, has_credential: bool) -> None:
    """Raise ModelListError unless the answer is what was asked for."""
    asked, status = address.prefix.decode() + _MODELS, response.status
    advice: str | None = None
    match status:
        case 200:
            return
        case 401 | 403 if has_credential:
            words, advice = f"refuses the credential ({status})", "set api_key to one that it knows"
        case 401 | 403:
            words, advice = f"wants a credential ({status}) and none is stored", "set api_key"
        case 404 | 405:
            words, advice = f"has no {asked} ({status})", "look whether base_url is right"
        case _ if 300 <= status < 400:
            words = f"sends {asked} elsewhere ({status}{_target(address, response)})"
            advice = "set base_url to where it leads"
        case _:
            words = f"answers {status} to GET {asked}"
    raise ModelListError(words, status, advice=advice)


def _target(address: Address, response: Response) -> str:
    """Where a redirect leads, without what may be secret in a URL."""
    here = f"{'https' if address.tls else 'http'}://{address.authority.decode()}{address.prefix.decode()}{_MODELS}"
    try:
        parts = urlsplit(urljoin(here, response.field(b"location").decode("latin-1")))
    except ValueError:
        return ""
    return f", to {parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"[:300]


async def _read(response: Response) -> bytes:
    try:
        return await response.read(LARGEST_LIST)
    except ValueError:
        raise ModelListError(
            f"answers with more than {LARGEST_LIST // 2**20} MiB, which is too large for a list", response.status
        ) from None


def _count(models: list[str]) -> str:
    return "1 model" if len(models) == 1 else f"{len(models) or 'no'} models"
