"""What a request asks for, as far as its key may have that. Pure."""

from __future__ import annotations

import re
from urllib.parse import unquote_plus

from gasket.proxy.access import Profile
from gasket.proxy.bodies import NOTHING, Naming, Wanted, find_stored, read_wanted
from gasket.proxy.endpoints import Endpoint, Kind
from gasket.proxy.errors import BadRequestError, ForbiddenError
from gasket.proxy.forms import field_of, is_form

_RESPONSES = "/responses"
_BEFORE_A_MODEL = frozenset({"model", "models", "engine", "engines", "deployment", "deployments"})
_SEPARATORS = re.compile(r"[&;]")


def read_request(
    endpoint: Endpoint, query: bytes, body: bytes, content_type: bytes, profile: Profile
) -> tuple[Endpoint, Wanted]:
    """What the request says of itself, and the endpoint: one that is about what the upstream keeps is stateful,
    whatever its path.

    Raises:
        ForbiddenError: the profile does not allow the model, or what the upstream keeps.
        BadRequestError, MediaTypeError: the request cannot be read, or not by everybody alike where that matters.
    """
    restricted = bool(profile.allowed_models)
    if restricted and endpoint.kind is not Kind.MODELS:
        _look_for_other_models(endpoint.path, query)
    if endpoint.kind is Kind.STATELESS:
        wanted = read_wanted(body, content_type, Naming.ONCE if restricted else Naming.AS_IT_LIKES)
        if endpoint.path == _RESPONSES and not is_form(content_type) and (name := find_stored(body)) is not None:
            check_stateful(profile, f"A response with `{name}`", param=name)
            endpoint = endpoint._replace(kind=Kind.STATEFUL)
    elif endpoint.kind is Kind.STATEFUL and body and (restricted or body[:100].lstrip()[:1] == b"{"):
        wanted = read_wanted(body, content_type, Naming.AT_MOST_ONCE if restricted else Naming.AS_IT_LIKES)
    else:
        wanted = NOTHING
    if wanted.model is not None and not profile.allows(wanted.model):
        raise ForbiddenError(
            f"This key may not use the model {wanted.model!r}.", code="model_not_allowed", param="model"
        )
    return endpoint, wanted


def check_stateful(profile: Profile, what: str, *, param: str | None = None) -> None:
    """Raises ForbiddenError if the profile does not allow what lives in the upstream's account."""
    if not profile.allow_stateful_endpoints:
        raise ForbiddenError(
            f"{what} is not open to this key: what it makes or shows is shared by all keys. "
            "An administrator can allow it (allow_stateful_endpoints).",
            param=param,
        )


def _look_for_other_models(path: str, query: bytes) -> None:
    """A key that may use certain models only names its model in the body, and nowhere else."""
    if not _BEFORE_A_MODEL.isdisjoint(path.lower().split("/")):
        raise ForbiddenError(
            "This key may use certain models only, and the path names one.", code="model_not_allowed", param="model"
        )
    for parameter in _SEPARATORS.split(query.decode("latin-1")) if query else ():
        if parameter and field_of(unquote_plus(parameter.partition("=")[0])) in (None, "model"):
            raise BadRequestError(
                "This key may use certain models only: the query can have no `model`, and no names but those of "
                "letters, digits and _ . - [ ].",
                code="model_required",
                param="model",
            )
