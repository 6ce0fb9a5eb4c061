"""Ready settings of clients, and the small things around lists and limits."""

from __future__ import annotations

import shlex
import tomllib

import pytest
import yaml

from gasket.ui.clients import own_origin, snippets
from gasket.ui.formats import window
from gasket.ui.lists import Listing, whole_number

KEY = "gsk_0123"
ODD_MODEL = 'it\'s "odd" $(id)\u202e'


def scope(host: str, *fields: tuple[bytes, bytes], scheme: str = "http") -> dict[str, object]:
    return {"scheme": scheme, "headers": [(b"host", host.encode()), *fields]}


@pytest.mark.parametrize(
    ("request_scope", "origin"),
    [
        (scope("127.0.0.1:8000"), "http://127.0.0.1:8000"),
        (scope("[::1]:8000"), "http://[::1]:8000"),
        (scope("localhost"), "http://localhost"),
        (scope("localhost", (b"x-forwarded-proto", b"https")), "https://localhost"),
        (scope("gw.example"), "https://gw.example"),
        (scope("gw.example:8443", scheme="https"), "https://gw.example:8443"),
        (scope('"><script>'), "https://gasket.example"),
        (scope("a b"), "https://gasket.example"),
        ({"scheme": "https", "headers": []}, "https://gasket.example"),
    ],
)
def test_the_address_is_the_one_of_the_browser(request_scope: dict[str, object], origin: str) -> None:
    assert own_origin(request_scope) == origin


def texts_of(origin: str, key: str, model: str) -> dict[str, str]:
    """All that is to be copied into each client, in one text."""
    shown = snippets(origin, key, model)
    return {snippet.client: "\n".join(part.text for part in snippet.parts) for snippet in shown}


def test_each_client_has_the_key_the_address_and_the_model() -> None:
    texts = texts_of("https://gw.example", KEY, "llama")
    assert list(texts) == ["curl", "openai-python", "openai-node", "Claude Code", "Codex", "Continue", "Open WebUI"]
    for client, text in texts.items():
        assert KEY in text, client
        assert "https://gw.example" in text, client
        assert "llama" in text or client == "Open WebUI"


def test_an_odd_name_of_a_model_stays_a_name() -> None:
    texts = texts_of("https://gw.example", KEY, ODD_MODEL)
    words = shlex.split(texts["curl"].replace("\\\n", ""))
    assert words[-2] == "-d"
    shell = shlex.split(texts["Claude Code"])
    assert f"ANTHROPIC_MODEL={ODD_MODEL}" in shell
    assert yaml.safe_load(texts["Continue"])["models"][0]["model"] == ODD_MODEL
    compile(texts["openai-python"], "snippet", "exec")


def test_the_file_of_codex_has_no_key() -> None:
    codex = next(snippet for snippet in snippets("https://gw.example", KEY, ODD_MODEL) if snippet.client == "Codex")
    file, shell = (part.text for part in codex.parts)
    settings = tomllib.loads(file)
    assert settings["model"] == ODD_MODEL
    assert settings["model_providers"][settings["model_provider"]]["env_key"] in shell
    assert KEY not in file


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(60, "a minute"), (3600, "an hour"), (7200, "in 2 hours"), (86_400, "a day"), (90, "in 90 s"), (1, "in 1 s")],
)
def test_windows_in_words(seconds: int, words: str) -> None:
    assert window(seconds) == words


def test_the_pager() -> None:
    listing = Listing("/ui/keys", 2, {"search": "a&b", "state": ""})
    pager = listing.pager(120, "key")
    assert (pager.words, pager.previous, pager.next) == (
        "51 to 100 of 120 keys",
        "/ui/keys?search=a%26b",
        "/ui/keys?search=a%26b&page=3",
    )
    assert listing.pager(100, "key").next is None
    assert Listing("/ui/keys", 1, {}).pager(1, "key").words == "1 key"
    assert Listing("/ui/keys", 1, {}).pager(1, "key").previous is None


@pytest.mark.parametrize(
    ("text", "number"),
    [("0", 0), ("99", 99), ("100", None), ("007", None), ("", None), ("-1", None), ("1.0", None), ("\u00b2", None)],
)
def test_whole_numbers_up_to_a_largest_one(text: str, number: int | None) -> None:
    assert whole_number(text, 99) == number
