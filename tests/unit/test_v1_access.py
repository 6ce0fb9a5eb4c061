"""What a profile allows."""

from __future__ import annotations

import pytest

from gasket.proxy.endpoints import find_endpoint
from gasket.proxy.errors import ForbiddenError
from gasket.proxy.reading import read_request
from gasket.server.errors import BadRequestError
from tests.access import a_profile

JSON = b"application/json"
PROFILE = a_profile(allowed_models=frozenset({"exact", "gpt-5*", "org/model-*", "a.c*", "dot.*", "dir/*"}))


@pytest.mark.parametrize(
    "model",
    ["exact", "gpt-5", "gpt-5-mini", "gpt-5.1:latest", "org/model-x/y@1", "org/model-a+b=c", "a.c", "a.cd"],
)
def test_a_beginning_allows_every_plain_rest(model: str) -> None:
    assert PROFILE.allows(model)


@pytest.mark.parametrize(
    "model",
    [
        "exact2",
        "gpt-4",
        "GPT-5",
        " gpt-5",
        "abc",
        "gpt-5,gpt-4",
        "gpt-5 ",
        "gpt-5\n",
        "gpt-5\0",
        "gpt-5?model=gpt-4",
        "gpt-5#gpt-4",
        "gpt-5%2e",
        "gpt-5\\..\\gpt-4",
        "gpt-5/../gpt-4",
        "gpt-5//gpt-4",
        "gpt-5|gpt-4",
        "gpt-5;gpt-4",
        "gpt-5\u0130",
        "org/model",
        "dot../x",
        "dir//x",
    ],
)
def test_it_allows_nothing_that_could_name_another_model(model: str) -> None:
    assert not PROFILE.allows(model)


def test_a_star_alone_allows_every_plain_name() -> None:
    assert a_profile(allowed_models=frozenset({"*"})).allows("any/model:1")


@pytest.mark.parametrize(
    ("body", "refused"),
    [
        (b'{"model":"gpt-5-mini"}', None),
        (b'{"model":"gpt-4"}', ForbiddenError),
        (b"{}", BadRequestError),
        (b'{"model":"gpt-5-mini","Model":"gpt-4"}', BadRequestError),
        (b'{"model":"gpt-5-mini","model":"gpt-5"}', BadRequestError),
    ],
)
def test_beginnings_alone_restrict_as_names_do(body: bytes, refused: type[Exception] | None) -> None:
    profile = a_profile(allowed_models=frozenset({"gpt-5*"}))
    endpoint = find_endpoint("POST", b"/v1/chat/completions")
    if refused is None:
        assert read_request(endpoint, b"", body, JSON, profile)[1].model == "gpt-5-mini"
    else:
        with pytest.raises(refused):
            read_request(endpoint, b"", body, JSON, profile)
