from __future__ import annotations

from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET, UnsetType

from gasket.errors import InvalidInputError
from gasket.inputs import Input


class Example(Input):
    multiline: ClassVar[frozenset[str]] = frozenset({"note"})

    name: str | UnsetType | None = UNSET
    note: str | UnsetType = UNSET
    tags: list[str] | UnsetType = UNSET


@pytest.mark.parametrize("text", ["plain", "Ünï cödé", "日本語", "👩‍💻", "a\u00a0b", ""])
def test_text_in_any_language_is_accepted(text: str) -> None:
    assert Example(name=text, note=text, tags=[text]).given() == {"name": text, "note": text, "tags": [text]}


@pytest.mark.parametrize("text", ["nul \0", "bell \a", "lone \ud800", "del \x7f", "c\x85 1"])
def test_what_cannot_be_stored_or_shown_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError, match="name must not contain control characters"):
        Example(name=text)
    with pytest.raises(InvalidInputError, match="note must not contain control characters"):
        Example(note=text)
    with pytest.raises(InvalidInputError, match="tags must not contain control characters"):
        Example(tags=["fine", text])


@pytest.mark.parametrize("text", [" a", "a ", "\u00a0a", "a\n"])
def test_a_line_does_not_begin_or_end_with_a_space(text: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        Example(name=text)
    assert caught.value.field == "name"
    assert Example(note=text).note == text


@pytest.mark.parametrize("text", ["a\nb", "a\tb", "a\r\nb"])
def test_only_some_fields_have_several_lines(text: str) -> None:
    assert Example(note=text).note == text
    with pytest.raises(InvalidInputError):
        Example(name=text)


@given(st.text(alphabet=st.characters(), max_size=20))
def test_what_is_accepted_can_be_encoded_and_has_no_nul(text: str) -> None:
    for field in ("name", "note"):
        try:
            Example(**{field: text})  # type: ignore[arg-type]  # either field
        except InvalidInputError:
            continue
        assert b"\0" not in text.encode()


def test_null_is_given_and_unset_is_not() -> None:
    assert Example(name=None).given() == {"name": None}
