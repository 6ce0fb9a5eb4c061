"""The order in which the backends of a request are asked. Pure, but for chance and the number of requests under way."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple

import msgspec

from gasket.proxy.access import Backend

Load = Callable[[Backend], int]
"""How many requests of this replica a backend has at the moment."""

_EXCESS = 1.25
"""How far above the average a backend's load may be before its requests go elsewhere: `c` of Mirrokni, Thorup and
Zadimoghaddam, "Consistent Hashing with Bounded Loads" (SODA 2018)."""
_LONGEST_BEGINNING = 4096
_LONGEST_PROMPT = 1024


class Route(NamedTuple):
    """A backend, and the model that it is asked for; None: the one that the client names."""

    backend: Backend
    model: str | None = None
    weight: int | None = None
    priority: int = 0


class _Message(msgspec.Struct):
    role: str | None = None


class _Conversation(msgspec.Struct):
    messages: list[msgspec.Raw] = []
    input: str | list[msgspec.Raw] = ""
    prompt: str | list[msgspec.Raw] = ""


_CONVERSATION = msgspec.json.Decoder(_Conversation)
_MESSAGE = msgspec.json.Decoder(_Message)


def only_route(backends: Sequence[Backend]) -> Sequence[Route]:
    """The way of every request where there is a single backend, which no operator has set aside and which has no rows:
    it answers for itself what it has. Empty where there is a choice.
    """
    if len(backends) == 1 and not (backends[0].models or backends[0].set_aside):
        return (Route(backends[0]),)
    return ()


def routes_to(backends: Iterable[Backend], model: str | None) -> list[Route]:
    """The ways to the model, in the order of the backends and of their rows. A backend with rows has one way for each
    row of the model; without a model, and without rows, a backend has one.
    """
    routes = []
    for backend in backends:
        if model is None or not backend.models:
            routes.append(Route(backend))
            continue
        for row in backend.served.get(model, ()):
            other = None if row.backend_model == model else row.backend_model
            routes.append(Route(backend, other, row.weight, row.priority))
    return routes


def arrange(routes: Sequence[Route], routing: str, *, load: Load, stick_to: Callable[[], bytes]) -> Sequence[Route]:
    """The routes in the order in which they are asked: by priority, then as the profile has it. `stick_to` gives what
    requests that belong together have in common.
    """
    if len(routes) < 2:
        return routes
    if routing == "ordered" and all(route.weight is None and not route.priority for route in routes):
        return routes
    priority = attrgetter("priority")
    arranged: list[Route] = []
    for _, group in groupby(sorted(routes, key=priority), key=priority):
        equals = list(group)
        match routing:
            case "weighted":
                arranged += _by_chance(equals)
            case "least_busy":
                arranged += _by_load(equals, load)
            case "sticky":
                arranged += _by_hash(equals, stick_to(), load)
            case _:
                arranged += _in_order(equals)
    return arranged


def beginning(body: bytes) -> bytes:
    """What a conversation keeps while it grows: its messages up to the first one of the user, or the beginning of the
    prompt. Empty if the body has none.
    """
    try:
        given = _CONVERSATION.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return b""
    source = given.messages or given.input or given.prompt
    if isinstance(source, str):
        return source[:_LONGEST_PROMPT].encode("utf-8", "replace")
    kept = b""
    for message in source:
        kept += bytes(message)
        if len(kept) >= _LONGEST_BEGINNING or _is_of_user(message):
            break
    return kept[:_LONGEST_BEGINNING]


def _is_of_user(message: msgspec.Raw) -> bool:
    try:
        return _MESSAGE.decode(message).role in (None, "user")
    except msgspec.DecodeError:
        return True


def _in_order(routes: list[Route]) -> list[Route]:
    """Routes with a weight take each other's places by chance; the others keep theirs."""
    drawn = iter(_by_chance([route for route in routes if route.weight is not None]))
    return [route if route.weight is None else next(drawn) for route in routes]


def _by_chance(routes: list[Route]) -> list[Route]:
    """Each comes first as often as its weight has it, the rest likewise (Efraimidis and Spirakis, 2006)."""
    return sorted(routes, key=lambda route: random.expovariate(_weight(route)))


def _by_load(routes: list[Route], load: Load) -> list[Route]:
    """The least busy backend for its weight; its rows, and backends that are equally busy, by chance."""
    weights = _weights(routes)
    return sorted(_by_chance(routes), key=lambda route: load(route.backend) / weights[route.backend.id])


def _by_hash(routes: list[Route], stick_to: bytes, load: Load) -> list[Route]:
    """By weighted rendezvous hashing; a backend above its share of the load comes after those that are not."""

    def score(route: Route) -> float:
        place = f"{route.backend.id}:{route.model or ''}:".encode()
        drawn = int.from_bytes(blake2b(place + stick_to, digest_size=7).digest())
        return -math.log((drawn + 1) / (1 << 56)) / _weight(route)

    weights = _weights(routes)
    loads = {route.backend.id: load(route.backend) for route in routes}
    share = _EXCESS * (sum(loads.values()) + 1) / sum(weights.values())
    full = {backend_id for backend_id, taken in loads.items() if taken >= math.ceil(share * weights[backend_id])}
    return sorted(routes, key=lambda route: (route.backend.id in full, score(route)))


def _weights(routes: list[Route]) -> dict[int, int]:
    """The weights of the backends, by their ids: the sums of their routes'."""
    weights: dict[int, int] = {}
    for route in routes:
        weights[route.backend.id] = weights.get(route.backend.id, 0) + _weight(route)
    return weights


def _weight(route: Route) -> int:
    return 1 if route.weight is None else route.weight
