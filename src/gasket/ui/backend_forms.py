"""The form of a backend: what it shows of a stored one, and what `/api` takes of what it has sent.

Secrets are write-only: they are never in a page, not even when the form is shown again with an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from gasket.backends.models import OpenAIBackend
from gasket.backends.schemas import BackendCreate, BackendUpdate, ModelRow
from gasket.errors import GasketError, InvalidInputError
from gasket.ui.forms import Form, convert, lines

MOST_ROWS = 50
"""Models that the form shows as rows. A backend with more of them is changed through `/api`."""

_TEXTS = ("name", "base_url", "credential_header", "credential_scheme")
_NUMBERS = ("max_concurrency", "connect_timeout", "first_byte_timeout", "chunk_timeout")
_SECRETS = ("api_key", "headers", "proxy_url", "client_certificate")
_ROW = ("name", "backend_model", "weight", "priority")
_SPARE_ROWS = 3
_FORGET = "forget_"
DEFAULTS = {
    "credential_header": "Authorization",
    "credential_scheme": "Bearer",
    "connect_timeout": "5",
    "first_byte_timeout": "600",
    "chunk_timeout": "300",
}


class BackendForm(msgspec.Struct, frozen=True):
    """A form with its rows of models, each with the texts of `name`, `backend_model`, `weight` and `priority`."""

    form: Form
    rows: Sequence[Mapping[str, str]]
    editable_rows: bool = True

    @property
    def opened(self) -> bool:
        """Whether something is wrong with one of the rarer fields, which are folded otherwise."""
        return bool(self.form.errors.keys() - {"name", "base_url", "api_key", "models"})


def new_form() -> BackendForm:
    """That of a new backend."""
    return BackendForm(Form(dict(DEFAULTS)), _with_spare([]))


def form_of(backend: OpenAIBackend) -> BackendForm:
    """That of a stored backend, without its secrets."""
    models = backend.models or []
    editable = len(models) <= MOST_ROWS
    return BackendForm(Form(_texts(backend)), _with_spare(_row_texts(models)) if editable else [], editable)


def shown_again(
    form: Form, *, error: GasketError | None = None, more: bool = False, editable: bool = True
) -> BackendForm:
    """What was sent, without secrets, with the error beside its field. `more`: with more empty rows."""
    names = (*_TEXTS, *_NUMBERS, "response_headers", "skip_tls_verify")
    kept = {name: form.values.get(name, "") for name in names} | dict.fromkeys((*_SECRETS, "models"), "")
    kept |= {name: value for name, value in form.values.items() if name.startswith(_FORGET)}
    shown = Form(kept).refused(error) if error else Form(kept)
    if not editable:
        return BackendForm(shown, [], editable_rows=False)
    return BackendForm(shown, _with_spare(_sent_rows(form.values), 10 if more else _SPARE_ROWS))


def creation(form: Form) -> BackendCreate:
    """The new backend that was sent.

    Raises:
        InvalidInputError: a value is not valid; with its field.
    """
    values = {name: value for name, value in _values(form.values).items() if value is not None}
    return convert(values | {"models": _rows(form.values) or None}, BackendCreate)


def changes(form: Form, backend: OpenAIBackend) -> BackendUpdate:
    """What was sent and is not as it is stored. A secret that is left empty stays, unless it is to be forgotten.

    Raises:
        InvalidInputError: a value is not valid; with its field.
    """
    shown, sent = _texts(backend), form.values
    same = {name for name, text in shown.items() if sent.get(name, "") == text}
    values = {name: value for name, value in _values(sent).items() if name not in same}
    for name in _SECRETS:
        if not sent.get(name):
            values.pop(name, None)
            if sent.get(f"{_FORGET}{name}") == "true":
                values[name] = None
    stored = backend.models or []
    if len(stored) <= MOST_ROWS:
        rows = _rows(sent)
        if rows != _rows_of(stored):
            values["models"] = rows or None
    return convert(values, BackendUpdate)


def _texts(backend: OpenAIBackend) -> dict[str, str]:
    texts = {name: str(getattr(backend, name)) for name in _TEXTS}
    texts |= {name: _number(getattr(backend, name)) for name in _NUMBERS}
    texts["response_headers"] = "\n".join(backend.response_headers)
    texts["skip_tls_verify"] = "true" if backend.skip_tls_verify else ""
    return texts


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _values(texts: Mapping[str, str]) -> dict[str, Any]:
    """The fields as `/api` has them, without the models.

    Raises:
        InvalidInputError: a time is missing, or headers are none.
    """
    values: dict[str, Any] = {name: texts.get(name, "") for name in _TEXTS}
    values |= {name: texts.get(name) or None for name in _NUMBERS}
    if missing := [name for name in _NUMBERS[1:] if values[name] is None]:
        raise InvalidInputError("This must be a number of seconds.", field=missing[0])
    values["skip_tls_verify"] = texts.get("skip_tls_verify") == "true"
    values["response_headers"] = lines(texts.get("response_headers", ""))
    values |= {name: texts[name] for name in ("api_key", "proxy_url") if texts.get(name)}
    if certificate := texts.get("client_certificate"):
        values["client_certificate"] = certificate
    if headers := texts.get("headers"):
        values["headers"] = _headers(headers)
    return values


def _headers(text: str) -> dict[str, str]:
    """`name: value`, one a line.

    Raises:
        InvalidInputError: a line has no colon, or a name comes twice.
    """
    headers: dict[str, str] = {}
    for line in lines(text):
        name, colon, value = line.partition(":")
        if not colon or name.strip() in headers:
            raise InvalidInputError("Each line is a name, a colon and a value; no name comes twice.", field="headers")
        headers[name.strip()] = value.strip()
    return headers


def _sent_rows(texts: Mapping[str, str]) -> list[dict[str, str]]:
    """The rows that were not left empty."""
    rows = []
    for number in range(2 * MOST_ROWS):
        row = {name: texts.get(f"model-{number}-{name}", "") for name in _ROW}
        if any(row.values()):
            rows.append(row)
    return rows


def _rows(texts: Mapping[str, str]) -> list[dict[str, Any]]:
    """The same as `/api` takes it.

    Raises:
        InvalidInputError: a row has no name, or its numbers are none.
    """
    rows = []
    for row in _sent_rows(texts):
        values: dict[str, Any] = {"name": row["name"], "priority": row["priority"] or "0"}
        values |= {name: row[name] for name in ("backend_model", "weight") if row[name]}
        try:
            model = msgspec.convert(values, ModelRow, strict=False)
        except (msgspec.ValidationError, InvalidInputError):
            raise InvalidInputError(
                "Each model has a name of at most 200 characters; weight is a whole number from 1 to 1 000 000, "
                "priority one from 0 to 1000.",
                field="models",
            ) from None
        rows.append(_row_of(model))
    return rows


def _rows_of(models: Sequence[ModelRow]) -> list[dict[str, Any]]:
    return [_row_of(model) for model in models]


def _row_of(model: ModelRow) -> dict[str, Any]:
    return {
        "name": model.name,
        "backend_model": model.backend_model or model.name,
        "weight": model.weight,
        "priority": model.priority,
    }


def _row_texts(models: Sequence[ModelRow]) -> list[dict[str, str]]:
    return [
        {
            "name": model.name,
            "backend_model": "" if model.backend_model in (None, model.name) else str(model.backend_model),
            "weight": "" if model.weight is None else str(model.weight),
            "priority": str(model.priority),
        }
        for model in models
    ]


def _with_spare(rows: Sequence[Mapping[str, str]], spare: int = _SPARE_ROWS) -> list[Mapping[str, str]]:
    return [*rows, *([dict.fromkeys(_ROW, "")] * spare)][: max(MOST_ROWS, len(rows))]
