"""Reads what a request asks for, and refuses what its key may not have. Pure."""

from __future__ import annotations

import re
from urllib.parse import unquote_plus

from gasket.proxy.access import Profile
from gasket.proxy.bodies import NOTHING, Naming, Wanted, find_stored, read_wanted
from gasket.proxy.endpoints import Endpoint, Kind
from gasket.proxy.errors import ForbiddenError
from gasket.proxy.forms import field_of, is_form
from gasket.server.errors import BadRequestError

_RESPONSES = frozenset({"/responses", "/responses/compact", "/responses/input_tokens"})
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
    restricted = profile.restricts_models
    if restricted and endpoint.kind is not Kind.MODELS:
        _look_for_other_models(endpoint.path if endpoint.takes_body else "", query)  # `audio/models` names none
    if not endpoint.takes_body and not body:
        wanted = NOTHING
    elif endpoint.kind is Kind.STATELESS:
        naming = Naming.ONCE if profile.allowed_models else Naming.AT_MOST_ONCE if restricted else Naming.AS_IT_LIKES
        wanted = read_wanted(body, content_type, naming)
        if endpoint.path in _RESPONSES and not is_form(content_type) and (name := find_stored(body)) is not None:
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
        words = f"{what} is not open to this key: what it makes or shows is shared by all keys."
        raise ForbiddenError(
            f"{words} An administrator can allow it.",
            param=param,
            detail=f"{words} The profile's allow_stateful_endpoints is false.",
        )


def _look_for_other_models(path: str, query: bytes) -> None:
    """Where the model decides where a request goes, it is named in the body, and nowhere else."""
    if not _BEFORE_A_MODEL.isdisjoint(path.lower().split("/")):
        raise ForbiddenError(
            "A request of this key must name its model in the body, not in the path.",
            code="model_not_allowed",
            param="model",
        )
    for parameter in _SEPARATORS.split(query.decode("latin-1")) if query else ():
        if parameter and field_of(unquote_plus(parameter.partition("=")[0])) in (None, "model"):
            raise BadRequestError(
                "A request of this key must name its model in the body: the query can have no `model`, and no names "
                "but those of letters, digits and _ . - [ ].",
                code="model_required",
                param="model",
            )
