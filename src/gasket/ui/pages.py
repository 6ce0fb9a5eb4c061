"""Templates, and the answers made of them."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from litestar import Request
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.params import SkipValidation
from litestar.response import Redirect, Template
from sqlalchemy.ext.asyncio import AsyncSession

from gasket.access.authentication import identity_of
from gasket.access.roles import Identity, may
from gasket.db import Transactions
from gasket.errors import GasketError
from gasket.ui import formats
from gasket.ui.assets import address_of
from gasket.ui.navigation import links_for

PageRequest = Request[Any, Any, State]
Session = NamedDependency[SkipValidation[AsyncSession]]
Transaction = NamedDependency[SkipValidation[Transactions]]

_FOLDER = Path(__file__).with_name("templates")


def make_environment() -> Environment:
    """Jinja's, with everything escaped, and an error where a template names what is not there."""
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    for filter_ in (
        formats.ago,
        formats.exact,
        formats.number,
        formats.short,
        formats.milliseconds,
        formats.size,
        formats.percent,
        formats.plural,
        formats.window,
        formats.prose,
    ):
        environment.filters[filter_.__name__] = filter_
    environment.globals["asset"] = address_of
    return environment


def page(
    request: PageRequest, template: str, *, status: int = 200, refresh: int | None = None, **values: Any
) -> Template:
    """A page. Its template also gets who looks at it, the links of `nav`, the time `now`, and `may`.

    `may("POST /ui/keys")` tells whether the role of who looks may do that: what it may not do has no button.

    `refresh`: seconds after which the script loads it anew. A page with a form has none.
    """
    identity = visitor(request)
    return Template(
        template,
        context={
            **values,
            "identity": identity,
            "links": links_for(identity, request.url.path),
            "now": datetime.now(UTC),
            "may": partial(_may, identity),
            "csrf_token": identity.csrf_token or "" if identity else "",
            "refresh": refresh,
            "release": request.app.state.release,
        },
        status_code=status,
        media_type="text/html",
    )


def _may(identity: Identity | None, route: str) -> bool:
    return identity is not None and may(identity, route)


def visitor(request: PageRequest) -> Identity | None:
    """Who looks at the page; None: not signed in."""
    try:
        return identity_of(request)
    except GasketError:
        return None


def to(path: str, **query: str) -> Redirect:
    """Lead on to another page, with GET: the answer to a form that was taken."""
    return Redirect(f"{path}?{urlencode(query)}" if query else path, status_code=303)
