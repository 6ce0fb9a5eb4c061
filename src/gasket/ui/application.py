"""The application of the pages."""

from __future__ import annotations

from litestar import Litestar, Router
from litestar.datastructures import MutableScopeHeaders
from litestar.plugins.jinja import JinjaTemplateEngine
from litestar.template import TemplateConfig
from litestar.types import ControllerRouterHandler, Message, Scope

from gasket import http
from gasket.access.authentication import require_role
from gasket.access.sign_in_controller import SignInController
from gasket.ui.access import AccessPages
from gasket.ui.audit import audit
from gasket.ui.backends import BackendPages
from gasket.ui.errors import show_error
from gasket.ui.headers import SECURITY
from gasket.ui.keys import KeyPages
from gasket.ui.my_keys import MyKeyPages
from gasket.ui.overview import overview
from gasket.ui.pages import make_environment
from gasket.ui.profiles import ProfilePages
from gasket.ui.reference import reference, reference_of
from gasket.ui.schema import SchemaPages
from gasket.ui.sign_in import sign_in, sign_in_page, sign_out
from gasket.ui.usage import usage, usage_csv

HANDLERS: list[ControllerRouterHandler] = [
    overview,
    SchemaPages,
    BackendPages,
    ProfilePages,
    KeyPages,
    MyKeyPages,
    AccessPages,
    audit,
    usage,
    usage_csv,
    sign_out,
]
"""Behind the guard: a row of `ROUTES` says who may."""
OPEN: list[ControllerRouterHandler] = [sign_in_page, sign_in, SignInController]
"""For everybody. Browsers sign in at the provider here, so that errors are pages; programs do so beside `/api`."""
DOCUMENTATION: list[ControllerRouterHandler] = [reference, reference_of]
"""For everybody where GASKET_DOCS_PUBLIC is true, otherwise behind the guard."""


def make_application(app: Litestar) -> Litestar:
    """The pages, with the dependencies and the state of the application that answers `/api`."""
    guarded, open_to_all = list(HANDLERS), list(OPEN)
    (open_to_all if app.state.docs_public else guarded).extend(DOCUMENTATION)
    return Litestar(
        route_handlers=[Router("/", route_handlers=guarded, guards=[require_role]), *open_to_all],
        dependencies=app.dependencies,
        exception_handlers={Exception: show_error},
        template_config=TemplateConfig(instance=JinjaTemplateEngine.from_environment(make_environment())),
        before_send=[http.log_response, _harden],
        request_max_body_size=1_000_000,
        openapi_config=None,
        logging_config=None,
        state=app.state,
    )


async def _harden(message: Message, scope: Scope) -> None:
    """Litestar's hook before each message of a response, also of an error's."""
    if message["type"] == "http.response.start":
        headers = MutableScopeHeaders.from_message(message)
        headers.update(SECURITY)
        headers.setdefault("cache-control", "no-store")
