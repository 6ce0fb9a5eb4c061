from __future__ import annotations

import pytest
from cryptography.fernet import Fernet

from gasket.backends.models import UNREADABLE, EncryptedCredential, KeyRing, MultiFernetBackend, OpenAIBackend, key_ring
from gasket.backends.schemas import BackendCreate, BackendUpdate, ProfileUpdate
from gasket.errors import InvalidInputError

OLD, NEW, OTHER = (Fernet.generate_key().decode() for _ in range(3))


def ring(*keys: str) -> KeyRing:
    made = KeyRing()
    made.load(keys)
    return made


class TestKeyRing:
    def test_the_first_key_encrypts_and_all_decrypt(self) -> None:
        old = ring(OLD).encrypt("secret")
        both = ring(NEW, OLD)
        assert both.decrypt(old) == "secret"
        assert Fernet(NEW).decrypt(both.encrypt("secret")) == b"secret"

    def test_what_no_key_opens_is_none(self) -> None:
        assert ring(OTHER).decrypt(ring(OLD).encrypt("secret")) is None
        assert ring(OLD).decrypt("not a token") is None
        assert ring().decrypt(ring(OLD).encrypt("secret")) is None

    def test_reencrypting_leaves_the_first_key_alone_to_open_it(self) -> None:
        token = ring(NEW, OLD).reencrypt(ring(OLD).encrypt("secret"))
        assert token is not None
        assert ring(NEW).decrypt(token) == "secret"
        assert ring(OLD).decrypt(token) is None
        assert ring(NEW, OLD).reencrypt(ring(OTHER).encrypt("secret")) is None

    def test_without_keys_nothing_is_stored_in_the_clear(self) -> None:
        assert not ring().loaded
        with pytest.raises(RuntimeError, match="GASKET_SECRET_KEY"):
            ring().encrypt("secret")

    def test_no_key_shows(self) -> None:
        key_ring.load([OLD])
        try:
            shown = [ring(OLD), key_ring, MultiFernetBackend(), EncryptedCredential(), OpenAIBackend(api_key="secret")]
            for thing in shown:
                assert OLD not in f"{thing!r} {thing} {vars(thing)!r}"
                assert "secret" not in f"{thing!r} {thing}"
        finally:
            key_ring.load([])


def test_an_unreadable_credential_can_never_be_sent() -> None:
    backend = OpenAIBackend(api_key=UNREADABLE)
    assert backend.has_api_key
    assert backend.credential_unreadable
    assert f"Bearer {backend.api_key}" == "Bearer "


def test_inputs_do_not_show_the_credential() -> None:
    made = BackendCreate(name="main", base_url="http://host", api_key="sk-secret")
    assert "sk-secret" not in f"{made!r} {BackendUpdate(api_key='sk-secret')!r}"


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:11434",
        "https://api.openai.com/v1",
        "https://api.openai.com/v1/",
        "HTTPS://EXAMPLE.com",
        "http://[::1]:8000/v1",
        "http://10.0.0.1:65535",
        "https://bücher.example/v1",
        "https://host/a%20b",
    ],
)
def test_urls_that_a_backend_can_have(url: str) -> None:
    assert BackendCreate(name="main", base_url=url).base_url == url


@pytest.mark.parametrize(
    "url",
    [
        "api.openai.com/v1",
        "//api.openai.com",
        "http:/host",
        "http://:80",
        "http://host:65536",
        "http://host:-1",
        "http://u@host",
        "http://@host",
        "http://host#",
        "file:///etc/passwd",
        "http://a b",
        "http://host/\u00a0",
        "http://host\\@evil",
        "javascript:alert(1)",
    ],
)
def test_urls_that_it_cannot_have(url: str) -> None:
    with pytest.raises(InvalidInputError, match="base_url"):
        BackendCreate(name="main", base_url=url)


def test_only_what_was_given_is_changed() -> None:
    assert ProfileUpdate(description=None, backends=[]).given() == {"description": None, "backends": []}
