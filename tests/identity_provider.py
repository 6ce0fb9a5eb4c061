"""An identity provider for tests: it checks what a client has to send, and lies as a test tells it to."""

from __future__ import annotations

import base64
import json
import secrets
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, parse_qsl, unquote_plus, urlencode, urlsplit

from joserfc import jwt
from joserfc.errors import SecurityWarning
from joserfc.jwk import Key, RSAKey
from joserfc.jws import JWSRegistry

CLIENT_ID = "gasket"
KEY: Key = RSAKey.generate_key(2048, {"kid": "first"})
OTHER_KEY: Key = RSAKey.generate_key(2048, {"kid": "second"})
CLIENT_SECRET = "a secret: with a colon"


class IdentityProvider:
    """One person is signed in there. What is public may be changed by a test."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.key = KEY
        self.published: list[dict[str, Any]] = [self.key.as_dict(private=False)]
        self.algorithms = ["RS256"]
        self.metadata: dict[str, Any] = {}
        """Replaces what the metadata have."""
        self.person: dict[str, Any] = {"sub": "ada", "email": "lin@example.com", "email_verified": True}
        self.claims: dict[str, Any] = {}
        """Replaces claims of the next ID tokens; None leaves one out."""
        self.header: dict[str, Any] = {}
        """The same for the header."""
        self.userinfo: dict[str, Any] | None = None
        self.forge: Callable[[str], str] | None = None
        """Makes the ID token that is sent from the right one."""
        self.status: dict[str, int] = {}
        """Of the answers at a path, if not 200."""
        self.asked: list[str] = []
        self._codes: dict[str, dict[str, str]] = {}

    def sign(self, claims: dict[str, Any], *, key: Key | None = None, header: dict[str, Any] | None = None) -> str:
        """A token with these claims."""
        known = key or self.key
        header = {"alg": "RS256", "kid": known.get("kid")} | self.header | (header or {})
        header = {name: value for name, value in header.items() if value is not None}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SecurityWarning)
            return jwt.encode(header, claims, known, registry=JWSRegistry(algorithms=[header["alg"]]))

    def token(self, **claims: Any) -> str:
        """A token for Gasket about the person, with other claims where they are given; None leaves one out."""
        now = int(time.time())
        all_of_them = {"iss": self.url, "aud": CLIENT_ID, "iat": now, "exp": now + 300} | self.person | claims
        return self.sign({name: value for name, value in all_of_them.items() if value is not None})

    def authorize(self, location: str) -> dict[str, str]:
        """What a browser brings back that was sent here: the query of the redirect URI."""
        parts = urlsplit(location)
        assert f"{parts.scheme}://{parts.netloc}" == self.url
        asked = dict(parse_qsl(parts.query))
        assert asked["response_type"] == "code"
        assert asked["client_id"] == CLIENT_ID
        assert "openid" in asked["scope"].split()
        assert asked["code_challenge_method"] == "S256"
        code = secrets.token_urlsafe(16)
        self._codes[code] = asked
        return {"code": code, "state": asked["state"]}

    def answer(self, path: str, fields: Any, body: bytes) -> tuple[int, object]:
        """The status and the JSON of an answer."""
        self.asked.append(path)
        if path in self.status:
            return self.status[path], {}
        match path:
            case "/.well-known/openid-configuration":
                return 200, self._own_metadata()
            case "/jwks":
                return 200, {"keys": self.published}
            case "/token":
                return self._redeem(fields, parse_qs(body.decode()))
            case "/userinfo" if fields.get("authorization") == "Bearer an-access-token":
                return 200, self.userinfo
        return 404, {}

    def _own_metadata(self) -> dict[str, Any]:
        return {
            "issuer": self.url,
            "authorization_endpoint": f"{self.url}/authorize?tenant=1",
            "token_endpoint": f"{self.url}/token",
            "userinfo_endpoint": f"{self.url}/userinfo" if self.userinfo is not None else None,
            "jwks_uri": f"{self.url}/jwks",
            "id_token_signing_alg_values_supported": self.algorithms,
        } | self.metadata

    def _redeem(self, fields: Any, form: dict[str, list[str]]) -> tuple[int, object]:
        asked = self._codes.pop(form["code"][0], None)
        if asked is None:
            return 400, {"error": "invalid_grant"}
        digest = sha256(form["code_verifier"][0].encode()).digest()
        scheme, _, pair = fields["authorization"].partition(" ")
        client_id, secret = map(unquote_plus, base64.b64decode(pair).decode().split(":"))
        assert (scheme, client_id, secret) == ("Basic", CLIENT_ID, CLIENT_SECRET)
        assert base64.urlsafe_b64encode(digest).rstrip(b"=").decode() == asked["code_challenge"]
        assert form["redirect_uri"] == [asked["redirect_uri"]]
        assert form["grant_type"] == ["authorization_code"]
        token = self.token(**{"nonce": asked["nonce"]} | self.claims)
        token = self.forge(token) if self.forge else token
        return 200, {"access_token": "an-access-token", "token_type": "Bearer", "id_token": token}


@contextmanager
def identity_provider() -> Iterator[IdentityProvider]:
    """A provider on a port of 127.0.0.1 that the system chooses."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.startswith("/authorize?"):
                self._lead_back()
            else:
                self._answer(b"")

        def do_POST(self) -> None:
            self._answer(self.rfile.read(int(self.headers["content-length"])))

        def _lead_back(self) -> None:
            """For a browser: the person is signed in here already, so it is sent back at once."""
            back = provider.authorize(provider.url + self.path)
            asked = dict(parse_qsl(urlsplit(self.path).query))
            self.send_response(303)
            self.send_header("location", with_query(asked["redirect_uri"], back))
            self.send_header("content-length", "0")
            self.end_headers()

        def _answer(self, body: bytes) -> None:
            status, content = provider.answer(self.path, self.headers, body)
            encoded = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(encoded)))
            self.end_headers()
            self.wfile.write(encoded)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

    server = Server(("127.0.0.1", 0), Handler)
    provider = IdentityProvider(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield provider
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def with_query(path: str, query: dict[str, str]) -> str:
    """The path with the query."""
    return f"{path}?{urlencode(query)}"
