"""Requests made up from the API's own documentation: no answer is a fault of ours, and none is undocumented."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import httpx
import pytest
import requests
import schemathesis
from cryptography.fernet import Fernet
from hypothesis import given, settings
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from gasket.app import create_app
from gasket.settings import read_settings

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
KNOWN = 1001
"""The id of one row of each table; nothing listens at the backend's port."""
SEED = f"""
INSERT INTO openai_backends (id, name, base_url) VALUES ({KNOWN}, 'known', 'http://127.0.0.1:9') ON CONFLICT DO NOTHING;
UPDATE openai_backends SET base_url = 'http://127.0.0.1:9' WHERE base_url <> 'http://127.0.0.1:9';
INSERT INTO backend_profiles (id, name) VALUES ({KNOWN}, 'known') ON CONFLICT DO NOTHING;
INSERT INTO api_keys (id, user_email, name, key_value, key_preview, profile_id)
VALUES ({KNOWN}, 'a@example.com', 'known', 'known', 'gsk_...', {KNOWN}) ON CONFLICT DO NOTHING;
INSERT INTO usage_totals VALUES
    ('2026-11-25T18:00:00Z', {KNOWN}, {KNOWN}, {KNOWN}, 'known', 'a@example.com', 1, 2, 3),
    ('2026-12-25T18:00:00Z', {KNOWN}, {KNOWN}, 0, '', 'a@example.com', 1, 2, 3)
ON CONFLICT DO NOTHING
"""


def operations() -> dict[str, Any]:
    """The documented operations, by method and path."""
    app = create_app(
        read_settings(
            {"DATABASE_URL": "postgresql://127.0.0.1:1/none", "GASKET_SECRET_KEY": Fernet.generate_key().decode()}
        )
    )
    document = app.openapi_schema.to_schema()
    for methods in document["paths"].values():
        for operation in methods.values():
            operation.pop("security", None)  # every request bears the token: the others are test_http_api.py's
    found = dict[str, Any]()
    for result in schemathesis.openapi.from_dict(document).get_all_operations():
        assert isinstance(result, Ok), result
        found[result.ok().label] = result.ok()
    return found


OPERATIONS = operations()


def of_the_known(case: Case[Any]) -> Case[Any]:
    """The same request for a row that is there."""
    case.path_parameters = dict.fromkeys(case.path_parameters, KNOWN)
    return case


@pytest.mark.parametrize("examples", [25, pytest.param(1000, marks=[pytest.mark.soak, pytest.mark.timeout(1800)])])
@pytest.mark.parametrize("label", sorted(OPERATIONS))
async def test_answers_are_as_documented(
    label: str, examples: int, client: httpx.AsyncClient, database: asyncpg.Connection
) -> None:
    loop = asyncio.get_running_loop()
    operation = OPERATIONS[label]
    right, wrong = (operation.as_strategy(generation_mode=mode) for mode in GenerationMode)

    @settings(max_examples=examples, deadline=None, database=None, derandomize=examples < 100)
    @given(case=right | right.map(of_the_known) | wrong)
    def check(case: Case[Any]) -> None:
        answer = asyncio.run_coroutine_threadsafe(send(case), loop).result(30)
        case.validate_response(answer, checks=CHECKS)

    async def send(case: Case[Any]) -> httpx.Response:
        await database.execute(SEED)
        prepared = requests.Request(**case.as_transport_kwargs(base_url="http://gasket")).prepare()
        headers: dict[str, Any] = {**prepared.headers}
        body: Any = prepared.body
        return await client.request(str(prepared.method), str(prepared.url), headers=headers, content=body)

    await asyncio.to_thread(check)
