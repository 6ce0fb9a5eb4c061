from __future__ import annotations

import os
from typing import Any

import asyncpg
import pytest
from advanced_alchemy import exceptions as repository
from litestar import Request
from litestar.exceptions import HTTPException, ServiceUnavailableException, ValidationException
from sqlalchemy.exc import DBAPIError, IntegrityError, InternalError, OperationalError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from gasket import errors
from gasket.db import told_by_command
from gasket.http import describe, log_response, respond
from gasket.postgres.sessions import application_name

FORGING: Any = {"type": "http", "method": "GET", "path": "/nothing\n2026 ERROR forged\x1b[31m", "headers": []}


def subclasses(kind: type[errors.GasketError]) -> list[type[errors.GasketError]]:
    return [kind, *(below for child in kind.__subclasses__() for below in subclasses(child))]


AT_START = {errors.GasketError, errors.SettingsError, errors.EmbeddedDatabaseError}
OF_THE_API = [kind for kind in subclasses(errors.GasketError) if kind.__module__ == errors.__name__]


class DriverError(Exception):
    def __init__(self, sqlstate: str) -> None:
        super().__init__("secret words of the driver")
        self.sqlstate = sqlstate


def failed(kind: type[DBAPIError], sqlstate: str, *, lost: bool = False, cause: Exception | None = None) -> DBAPIError:
    driver = DriverError(sqlstate)
    driver.__cause__ = cause
    return kind("SELECT", {}, driver, connection_invalidated=lost)


def wrapped(kind: type[repository.RepositoryError], cause: Exception) -> Exception:
    """As Advanced Alchemy's repositories raise it."""
    error = kind("secret words")
    error.__cause__ = cause
    return error


LOST = failed(DBAPIError, "08006", cause=asyncpg.ConnectionFailureError("secret words"))


@pytest.mark.parametrize("error", [errors.DatabaseAwayError(), RuntimeError()])
def test_a_stranger_writes_no_lines_of_a_problem(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    respond(Request(FORGING), error)
    [said] = caplog.messages
    assert said.startswith("GET /nothing%0A2026%20ERROR%20forged%1B%5B31m")


async def test_nor_of_a_response(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "gasket.http")
    await log_response({"type": "http.response.start", "status": 404, "headers": []}, FORGING)
    [said] = caplog.messages
    assert said.startswith("GET /nothing%0A2026%20ERROR%20forged%1B%5B31m 404 from a Unix socket (request id ")


@pytest.mark.parametrize(("given", "kept"), [(b"mine", True), (b"line\nend", False), (b"x" * 129, False)])
async def test_a_response_and_its_log_lines_have_one_id(
    given: bytes, kept: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "gasket.http")
    scope: Any = {**FORGING, "headers": [(b"x-request-id", given)], "state": {}}
    respond(Request(scope), RuntimeError())
    message: Any = {"type": "http.response.start", "status": 500, "headers": []}
    await log_response(message, scope)
    [(name, value)] = message["headers"]
    assert (name, value == given) == (b"x-request-id", kept)
    assert len(caplog.messages) == 2
    assert all(f"(request id {value.decode()})" in said for said in caplog.messages)


@pytest.mark.parametrize("kind", [kind for kind in OF_THE_API if kind not in AT_START])
def test_every_error_of_a_request_has_a_name_of_its_own(kind: type[errors.GasketError]) -> None:
    problem = describe(kind())
    slug = "".join(f"-{c.lower()}" if c.isupper() else c for c in kind.__name__.removesuffix("Error")).strip("-")
    assert problem.type == f"urn:gasket:problem:{slug}"
    assert problem.detail == kind.__doc__
    assert f"{kind.__name__}  " in f"{errors.__doc__}  ".replace("\n", "  ")


@pytest.mark.parametrize(
    ("error", "status", "name"),
    [
        (errors.NameTakenError("x"), 409, "name-taken"),
        (errors.SettingsError("x"), 500, "internal"),
        (failed(IntegrityError, "23505"), 409, "conflict"),
        (failed(OperationalError, "40001"), 503, "database-busy"),
        (failed(DBAPIError, "57P01", cause=asyncpg.AdminShutdownError("secret words")), 503, "database-away"),
        (LOST, 503, "database-away"),
        (failed(InternalError, "", cause=asyncpg.InternalClientError("upset")), 503, "database-away"),
        (failed(DBAPIError, "XX000", lost=True), 503, "database-away"),
        (failed(ProgrammingError, "42P01"), 503, "schema-not-ready"),
        (failed(ProgrammingError, "42703"), 503, "schema-not-ready"),
        (failed(ProgrammingError, "3F000"), 503, "schema-not-ready"),
        (failed(ProgrammingError, "42601"), 500, "internal"),
        (PoolTimeoutError("x"), 503, "database-busy"),
        (TimeoutError(), 503, "database-busy"),
        (ExceptionGroup("cleanup", [failed(IntegrityError, "23505")]), 409, "conflict"),
        (ExceptionGroup("cleanup", [ValueError("secret words"), KeyError()]), 500, "internal"),
        (ServiceUnavailableException("later"), 503, "unavailable"),
        (HTTPException("teapot", status_code=418), 418, "http-418"),
        (HTTPException("secret words", status_code=500), 500, "internal"),
        (ValueError("secret words"), 500, "internal"),
        (wrapped(repository.DuplicateKeyError, failed(IntegrityError, "23505")), 409, "conflict"),
        (wrapped(repository.RepositoryError, failed(ProgrammingError, "42P01")), 503, "schema-not-ready"),
        (wrapped(repository.IntegrityError, LOST), 503, "database-away"),
        (repository.NotFoundError("secret words"), 404, "not-found"),
    ],
)
def test_what_an_error_is_to_the_client(error: Exception, status: int, name: str) -> None:
    problem = describe(error)
    assert (problem.status, problem.type) == (status, f"urn:gasket:problem:{name}")
    assert "secret words" not in problem.detail


@pytest.mark.parametrize("error", [TimeoutError(), LOST, ExceptionGroup("cleanup", [LOST])])
@pytest.mark.parametrize(("method", "changes"), [("GET", False), ("HEAD", False), ("POST", True), ("DELETE", True)])
def test_only_a_request_that_changes_something_may_have_changed_it(
    error: Exception, method: str, changes: bool
) -> None:
    scope: Any = {**FORGING, "method": method, "state": {}}
    response = respond(Request(scope), error)
    assert ("may have been made" in response.content.detail) is changes
    assert ("Try again soon." in response.content.detail) is not changes


def test_a_failed_validation_lists_the_fields_under_their_public_names() -> None:
    error = ValidationException(
        "Validation failed for GET /api/keys?pageSize=x",
        extra=[
            {"message": "too short", "key": "name", "source": "body"},
            {"message": "not an int", "key": "page_size", "source": "query"},
            {"message": "unknown field `x`", "key": "data", "source": "body"},
        ],
    )
    problem = describe(error)
    assert problem.detail == "name: too short; pageSize: not an int; body: unknown field `x`"
    assert [entry.field for entry in problem.errors] == ["name", "pageSize", "body"]


@pytest.mark.parametrize("release", ["1.0", "r" * 200, "ü" * 100, ""])
def test_a_sessions_name_fits_and_keeps_the_pid(release: str) -> None:
    name = application_name("gasket", release)
    assert len(name.encode()) <= 63
    assert name.isascii()
    assert name.endswith(f":{os.getpid()}")


def test_a_command_says_of_a_schema_that_is_behind_what_to_look_at() -> None:
    assert "gasket database status" in told_by_command(failed(ProgrammingError, "42P01"))
    assert told_by_command(LOST) == "secret words of the driver"
