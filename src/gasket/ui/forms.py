"""What a form of a page has sent."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec

from gasket.errors import ConflictError, GasketError, InvalidInputError, NameTakenError, NotFoundError
from gasket.ui.pages import PageRequest

T = TypeVar("T")

REFUSED = (InvalidInputError, ConflictError, NotFoundError)
"""Errors that whoever sent the form can mend: it is shown again, with the error."""


_WORDS = (
    (re.compile(r"Expected `int` >= (\d+)"), "This must be {} or more."),
    (re.compile(r"Expected `int` <= (\d+)"), "This must be {} or less."),
    (re.compile(r"Expected `int"), "This must be a whole number."),
    (re.compile(r"Expected `float"), "This must be a number."),
    (re.compile(r"Expected `str` of length >= 1$"), "This must not be empty."),
    (re.compile(r"Expected `str` of length >= (\d+)"), "This must have {} characters or more."),
    (re.compile(r"Expected `str` of length <= (\d+)"), "This must have {} characters or fewer."),
    (re.compile(r"Expected `array` of length <= (\d+)"), "These must be {} or fewer."),
    (re.compile(r"Expected `str` matching"), "This has a character that is not allowed here."),
    (re.compile(r"Object missing required field"), "This must not be empty."),
    (re.compile(r"Invalid RFC3339"), "This must be a date and a time, such as 2030-01-31T12:00."),
    (re.compile(r"Invalid enum value"), "Choose one of the values."),
)


class Form(msgspec.Struct, frozen=True):
    """The values of a form by the names of its fields, and what is wrong with them. `error` belongs to no field."""

    values: Mapping[str, str] = {}
    errors: Mapping[str, str] = {}
    error: str | None = None

    def given(self) -> dict[str, str]:
        """The fields that were filled in."""
        return {name: value for name, value in self.values.items() if value}

    def given_of(self, *names: str) -> dict[str, str]:
        """Those of these fields that were filled in."""
        return {name: self.values[name] for name in names if self.values.get(name)}

    def changed(self, shown: Mapping[str, str]) -> dict[str, str]:
        """The fields that no longer have the value that the form was shown with. A box that is not ticked is not sent.

        So a value that the form shows shortened, as a time without its microseconds, stays as it is.
        """
        return {name: self.values.get(name, "") for name, value in shown.items() if self.values.get(name, "") != value}

    def refused(self, error: GasketError, *beside: str) -> Form:
        """The same values, to be shown again with the error beside its field. `beside`: fields that have no value."""
        field = error.field if isinstance(error, InvalidInputError) else None
        if isinstance(error, NameTakenError):
            field = "name"
        if field is not None and (field in self.values or field in beside):
            return Form(self.values, {**self.errors, field: str(error)})
        return Form(self.values, self.errors, str(error))


async def read_form(request: PageRequest) -> Form:
    """The text fields of the form. Of a name that comes twice the last value counts; blanks around it do not."""
    data = await request.form()
    texts = {name: value for name, value in data.multi_items() if isinstance(value, str)}
    return Form({name: value.replace("\r\n", "\n").strip() for name, value in texts.items()})


def convert(values: Mapping[str, Any], to: type[T]) -> T:
    """The values as the struct that `/api` takes.

    Raises:
        InvalidInputError: one is not of its type; with its field.
    """
    try:
        return msgspec.convert(values, to, strict=False)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$")
        name = path.strip(".`").partition("[")[0].partition(".")[0] or None
        raise InvalidInputError(_in_words(message), field=name) from None


def lines(text: str) -> list[str]:
    """The lines of a text field that are not empty, without blanks around them."""
    return [line.strip() for line in text.split("\n") if line.strip()]


def moment(text: str) -> str | None:
    """What a field of the type `datetime-local` has sent, as UTC in RFC 3339; None: nothing."""
    if not text:
        return None
    return f"{text}:00Z" if len(text) == len("2030-01-01T00:00") else f"{text}Z"


def shown_moment(value: datetime | None) -> str:
    """A time in UTC, as such a field takes it."""
    return f"{value.astimezone(UTC):%Y-%m-%dT%H:%M:%S}" if value else ""


def _in_words(message: str) -> str:
    """msgspec's message for people who do not write Python."""
    for pattern, words in _WORDS:
        if found := pattern.match(message):
            return words.format(*found.groups())
    return message
