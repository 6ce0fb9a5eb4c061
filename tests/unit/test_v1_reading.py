"""What a request asks for, as far as its key may have that."""

from __future__ import annotations

import pytest

from gasket.proxy.access import ServedModel
from gasket.proxy.bodies import NOTHING
from gasket.proxy.endpoints import Kind, find_endpoint
from gasket.proxy.errors import ForbiddenError
from gasket.proxy.reading import read_request
from gasket.server.errors import BadRequestError
from tests.access import a_backend, a_profile

OPEN = a_profile(a_backend(), allow_stateful_endpoints=True)
RESTRICTED = a_profile(a_backend(), allowed_models=frozenset({"m"}))
WITH_ROWS = a_profile(a_backend(models=(ServedModel("m", "n", None, 0),)))
JSON = b"application/json"


@pytest.mark.parametrize("path", [b"/v1/audio/voices", b"/v1/audio/models"])
def test_a_list_needs_neither_a_body_nor_a_model(path: bytes) -> None:
    endpoint = find_endpoint("GET", path)
    assert read_request(endpoint, b"", b"", b"", RESTRICTED) == (endpoint, NOTHING)
    with pytest.raises(BadRequestError):
        read_request(endpoint, b"model=other", b"", b"", RESTRICTED)
    with pytest.raises(ForbiddenError):
        read_request(endpoint, b"", b'{"model": "other"}', JSON, RESTRICTED)


@pytest.mark.parametrize("path", [b"/v1/messages", b"/v1/messages/count_tokens", b"/v1/tokenize", b"/v1/score"])
def test_of_these_the_model_is_looked_at(path: bytes) -> None:
    endpoint = find_endpoint("POST", path)
    assert read_request(endpoint, b"", b'{"model": "m"}', JSON, RESTRICTED)[1].model == "m"
    with pytest.raises(ForbiddenError):
        read_request(endpoint, b"", b'{"model": "other"}', JSON, RESTRICTED)
    with pytest.raises(BadRequestError):
        read_request(endpoint, b"", b"{}", JSON, RESTRICTED)


@pytest.mark.parametrize("path", [b"/v1/responses", b"/v1/responses/compact", b"/v1/responses/input_tokens"])
def test_what_is_about_a_stored_response_is_stateful(path: bytes) -> None:
    endpoint = find_endpoint("POST", path)
    body = b'{"model": "m", "previous_response_id": "resp_1"}'
    stateful, _ = read_request(endpoint, b"", body, JSON, OPEN)
    assert (stateful.kind, stateful.metered) == (Kind.STATEFUL, endpoint.metered)
    with pytest.raises(ForbiddenError) as refused:
        read_request(endpoint, b"", body, JSON, RESTRICTED)
    assert "allow_stateful_endpoints" not in str(refused.value)
    assert "allow_stateful_endpoints" in str(refused.value.detail)
    assert read_request(endpoint, b"", b'{"model": "m"}', JSON, RESTRICTED)[0].kind is Kind.STATELESS


@pytest.mark.parametrize("body", [b'{"model": "m", "model": "m"}', b'{"Model": "m"}'])
def test_what_a_key_is_told_of_a_second_name_holds_without_allowed_models(body: bytes) -> None:
    with pytest.raises(BadRequestError, match="The model decides where") as refused:
        read_request(find_endpoint("POST", b"/v1/embeddings"), b"", body, JSON, WITH_ROWS)
    assert "certain models" not in str(refused.value)
