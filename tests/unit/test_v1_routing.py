"""In which order backends are asked."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from gasket.proxy.access import Backend, ServedModel
from gasket.proxy.bodies import Naming, read_wanted, replace_model
from gasket.proxy.routing import Route, arrange, beginning, only_route, routes_to
from tests.access import a_backend, a_profile

JSON, FORM = b"application/json", b"multipart/form-data; boundary=xyz"


def backend(number: int, *rows: tuple[Any, ...]) -> Backend:
    """A backend with rows of name, model, weight and priority."""
    return a_backend(id=number, name=f"b{number}", models=tuple(ServedModel(*row) for row in rows))


def in_order(routes: list[Route], routing: str = "ordered", **how: Any) -> list[tuple[int, str | None]]:
    plain: dict[str, Any] = {"load": lambda _backend: 0, "stick_to": lambda: b""}
    return [(route.backend.id, route.model) for route in arrange(routes, routing, **plain | how)]


def shares(routes: list[Route], routing: str = "ordered", draws: int = 4000, **how: Any) -> dict[Any, float]:
    """How often each comes first."""
    first = Counter(in_order(routes, routing, **how)[0] for _ in range(draws))
    return {route: count / draws for route, count in first.items()}


class TestRoutes:
    def test_rows_have_the_models_and_backends_without_rows_any(self) -> None:
        first = backend(1, ("m", "m:latest", 5, 2), ("n", "n", None, 0), ("m", "m", None, 0))
        assert routes_to([first, backend(2)], "m") == [
            Route(first, "m:latest", 5, 2),
            Route(first),
            Route(backend(2)),
        ]
        assert routes_to([first], "m:latest") == []
        assert routes_to([first], None) == [Route(first)]

    def test_a_single_backend_without_rows_is_the_way_of_every_request(self) -> None:
        assert only_route([backend(1)]) == (Route(backend(1)),)
        assert not only_route([])
        assert not only_route([backend(1), backend(2)])
        assert not only_route([backend(1, ("m", "m", None, 0))])
        assert not only_route([a_backend(set_aside=True)])

    def test_profiles_with_rows_restrict_models(self) -> None:
        assert not a_profile(backend(1)).restricts_models
        assert a_profile(backend(1), backend(2, ("m", "n", None, 0))).restricts_models


class TestOrdered:
    def test_the_order_stays(self) -> None:
        routes = routes_to([backend(3), backend(1), backend(2, ("m", "x", None, 0))], "m")
        assert in_order(routes) == [(3, None), (1, None), (2, "x")]

    def test_a_lower_priority_is_asked_first(self) -> None:
        routes = routes_to([backend(1, ("m", "small", None, 7), ("m", "big", None, 3)), backend(2)], "m")
        assert in_order(routes) == [(2, None), (1, "big"), (1, "small")]

    def test_weights_decide_within_one_priority(self) -> None:
        canary = backend(1, ("m", "old", 95, 0), ("m", "new", 5, 0), ("m", "last", 99, 1))
        found = shares(routes_to([canary], "m"))
        assert found.keys() == {(1, "old"), (1, "new")}
        assert 0.03 < found[1, "new"] < 0.07
        assert in_order(routes_to([canary], "m"))[2] == (1, "last")

    def test_those_with_a_weight_change_places_among_themselves(self) -> None:
        routes = [Route(backend(1), weight=1), Route(backend(2)), Route(backend(3), weight=1)]
        orders = {tuple(number for number, _ in in_order(routes)) for _ in range(200)}
        assert orders == {(1, 2, 3), (3, 2, 1)}


class TestWeighted:
    def test_each_comes_first_by_its_weight_and_no_weight_is_one(self) -> None:
        routes = routes_to([backend(1, ("m", "x", 3, 0)), backend(2)], "m")
        assert 0.71 < shares(routes, "weighted")[1, "x"] < 0.79

    def test_priorities_go_before_weights(self) -> None:
        routes = routes_to([backend(1, ("m", "x", 1000, 1)), backend(2)], "m")
        assert shares(routes, "weighted", draws=100) == {(2, None): 1}


class TestLeastBusy:
    def test_the_least_busy_for_its_weight_is_first(self) -> None:
        loads = {1: 5, 2: 3, 3: 4}
        routes = routes_to([backend(1), backend(2), backend(3)], "m")
        load = lambda backend: loads[backend.id]  # noqa: E731
        assert in_order(routes, "least_busy", load=load) == [(2, None), (3, None), (1, None)]
        routes = routes_to([backend(1, ("m", "m", 10, 0)), backend(2), backend(3)], "m")
        assert in_order(routes, "least_busy", load=load) == [(1, None), (2, None), (3, None)]

    def test_of_equals_any_is_first(self) -> None:
        found = shares(routes_to([backend(1), backend(2)], "least_busy"), "least_busy")
        assert 0.45 < found[1, None] < 0.55

    def test_rows_of_one_backend_keep_their_shares(self) -> None:
        found = shares(routes_to([backend(1, ("m", "a", 3, 0), ("m", "b", 1, 0))], "m"), "least_busy")
        assert 0.71 < found[1, "a"] < 0.79


class TestSticky:
    BACKENDS = routes_to([backend(number) for number in (1, 2, 3, 4)], "m")

    def first(self, user: int, routes: list[Route] | None = None, **how: Any) -> int:
        return in_order(routes or self.BACKENDS, "sticky", stick_to=f"user {user}".encode, **how)[0][0]

    def test_the_same_goes_to_the_same_and_all_are_used(self) -> None:
        firsts = [self.first(user) for user in range(2000)]
        assert firsts == [self.first(user, self.BACKENDS[::-1]) for user in range(2000)]
        assert all(400 < count < 600 for count in Counter(firsts).values())

    def test_without_a_backend_the_others_keep_theirs(self) -> None:
        fewer = self.BACKENDS[:-1]
        moved = [user for user in range(500) if self.first(user) != self.first(user, fewer)]
        assert all(self.first(user) == 4 for user in moved)

    def test_weights_count(self) -> None:
        routes = routes_to([backend(1, ("m", "m", 3, 0)), backend(2)], "m")
        assert 0.7 < sum(self.first(user, routes) == 1 for user in range(2000)) / 2000 < 0.8

    def test_no_backend_has_more_than_a_quarter_above_the_average(self) -> None:
        """Though everybody is one user, as in a load test: what goes on beside it is spread."""
        loads = dict.fromkeys((1, 2, 3, 4), 0)
        for requests in range(1, 401):
            loads[self.first(0, load=lambda backend: loads[backend.id])] += 1
            assert max(loads.values()) <= 1.25 * requests / 4 + 1
        home = self.first(0)
        assert loads[home] == max(loads.values())


class TestBeginning:
    @staticmethod
    def of(**body: Any) -> bytes:
        return beginning(json.dumps(body).encode())

    def test_it_stays_while_the_conversation_grows(self) -> None:
        said = [{"role": role, "content": role} for role in ("system", "user", "assistant", "user")]
        assert self.of(messages=said[:2]) == self.of(model="m", messages=said, stream=True) != b""
        assert self.of(input=said[:2]) == self.of(input=said)

    def test_other_conversations_have_another(self) -> None:
        system = {"role": "system", "content": "s"}
        one, two = [self.of(messages=[system, {"role": "user", "content": words}]) for words in ("one", "two")]
        assert one != two

    def test_of_a_long_one_only_the_beginning_counts(self) -> None:
        system = {"role": "system", "content": "s" * 10_000}
        one, two = [self.of(messages=[system, {"role": "user", "content": words}]) for words in ("one", "two")]
        assert one == two
        assert self.of(prompt="p" * 2000) == self.of(prompt="p" * 3000) == b"p" * 1024

    @pytest.mark.parametrize("body", [b"", b"no JSON", b"[]", b"{}", b'{"messages":3}', b'{"messages":null}'])
    def test_there_may_be_none(self, body: bytes) -> None:
        assert beginning(body) == b""


class TestReplacing:
    @pytest.mark.parametrize(
        ("before", "after"),
        [
            (b'{"model":"m","n":1}', b'{"model":"x/y:1","n":1}'),
            (b'{ "n" : 1.50, "model" :  "m" }', b'{ "n" : 1.50, "model" :  "x/y:1" }'),
            (b'{"tool":{"model":"m"},"model":"m"}', b'{"tool":{"model":"m"},"model":"x/y:1"}'),
            (b'{"m":"\\"model\\":","model":"m"}', b'{"m":"\\"model\\":","model":"x/y:1"}'),
            (b'{"a":{"model":"m"},"mod\\u0065l":"m"}', b'{"a":{"model":"m"},"mod\\u0065l":"x/y:1"}'),
            (b'{"a":"model","model":"m\\"\\\\"}', b'{"a":"model","model":"x/y:1"}'),
        ],
    )
    def test_of_json_only_the_bytes_of_the_name_change(self, before: bytes, after: bytes) -> None:
        assert read_wanted(before, JSON, Naming.ONCE).model is not None
        assert replace_model(before, JSON, "x/y:1") == after

    def test_what_the_name_has_is_escaped(self) -> None:
        assert json.loads(replace_model(b'{"model":"m"}', JSON, 'a"b\\c\u00e9')) == {"model": 'a"b\\c\u00e9'}

    @pytest.mark.parametrize("name", [b'"model"', b"model", b'"Model"'])
    def test_of_a_form_only_the_part_changes(self, name: bytes) -> None:
        def form(model: bytes) -> bytes:
            return (
                b'--xyz\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
                b"\r\n\r\nname=model\r\nm\r\n"
                b"--xyz\r\nContent-Disposition: form-data; name=" + name + b"\r\n\r\n" + model + b"\r\n"
                b'--xyz\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nmodel\r\n--xyz--\r\n'
            )

        assert read_wanted(form(b"m"), FORM, Naming.AT_MOST_ONCE).model == "m"
        assert replace_model(form(b"m"), FORM, "x/y:1") == form(b"x/y:1")
