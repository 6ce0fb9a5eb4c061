from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gasket.proxy.headers import Incoming, bearer, downstream, own_fields
from gasket.server.errors import BadRequestError, EncodedRequestError
from gasket.upstream.connection import Fields

HOP_BY_HOP = [
    b"connection",
    b"keep-alive",
    b"proxy-connection",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
    b"proxy-authenticate",
    b"proxy-authorization",
]
KEY = b"gsk_" + b"0a" * 24
OTHER_KEY = b"gsk_" + b"1b" * 24
OURS = (b"accept-encoding", b"identity")
OWN_ID = (b"x-gasket-request-id", b"our-id")


def upstream(*fields: tuple[bytes, bytes]) -> Fields:
    """What goes to the backend, without what every request gets from Gasket."""
    sent = Incoming(fields).upstream
    assert sent.count(OURS) == 1
    return [field for field in sent if field != OURS]


def to_client(*fields: tuple[bytes, bytes], client_request_id: str | None = None) -> Fields:
    """What goes to the client, without our id."""
    sent = downstream(fields, request_id="our-id", client_request_id=client_request_id)
    assert sent.count(OWN_ID) == 1
    return [field for field in sent if field != OWN_ID]


def test_a_backend_may_name_more_that_passes_to_clients() -> None:
    fields = [(b"x-served-by", b"1"), (b"x-region", b"2"), (b"x-served-by", b"3")]
    sent = downstream(fields, request_id="our-id", client_request_id=None, more=(b"x-served-by",))
    assert sent == [fields[0], fields[2], OWN_ID]
    named = [*fields, (b"connection", b"x-served-by")]
    assert downstream(named, request_id="our-id", client_request_id=None, more=(b"x-served-by",)) == [OWN_ID]


@pytest.mark.parametrize("name", HOP_BY_HOP)
def test_what_is_about_one_connection_goes_no_further(name: bytes) -> None:
    fields = [(b"etag", b"1"), (name, b"x"), (b"vary", b"2")]
    assert upstream(*fields) == [(b"etag", b"1"), (b"vary", b"2")]
    assert to_client(*fields) == [(b"etag", b"1"), (b"vary", b"2")]


@pytest.mark.parametrize(
    "name",
    [
        b"host",
        b"authorization",
        b"cookie",
        b"expect",
        b"forwarded",
        b"x-forwarded-for",
        b"x-forwarded-proto",
        b"x-forwarded-anything",
        b"x-real-ip",
        b"accept-encoding",
        b"x-http-method-override",
        b"x-http-method",
        b"x-method-override",
        b"x-original-url",
        b"x-rewrite-url",
        b"content_type",
        b"content_encoding",
        b"content_length",
        b"transfer_encoding",
        b"x-api-key",
        b"api-key",
        b"x-goog-api-key",
        b"x-openwebui-user-email",
        b"x-user-id",
        b"x-auth-request-email",
        b"x-librechat-user-id",
        b"cf-connecting-ip",
        b"true-client-ip",
        b"x-original-forwarded-for",
        b"from",
        b"remote-email",
        b"x-remote-user",
        b"x-authentik-email",
        b"x-pomerium-jwt-assertion",
        b"x-goog-iap-jwt-assertion",
        b"tailscale-user-login",
        b"x-webauth-user",
        b"x-litellm-end-user-id",
        b"helicone-user-id",
        b"x-user",
        b"x-username",
        b"x-consumer-username",
        b"wl-proxy-client-ip",
        b"x_forwarded_for",
        b"x_openwebui_user-email",
        b"x_api_key",
    ],
)
def test_what_a_backend_is_not_told(name: bytes) -> None:
    assert upstream((name, b"x"), (b"x-a", b"1")) == [(b"x-a", b"1")]


@pytest.mark.parametrize("value", [KEY, b"Bearer " + KEY, b"token=" + KEY + b"; x"])
def test_a_backend_is_never_told_a_key_of_ours(value: bytes) -> None:
    assert upstream((b"x-my-own", value), (b"x-a", b"gsk_1")) == [(b"x-a", b"gsk_1")]


@pytest.mark.parametrize(
    "name",
    [
        b"set-cookie",
        b"date",
        b"server",
        b"x-gasket-request-id",
        b"x-gasket-unavailable-backends",
        b"x-accel-redirect",
        b"x-accel-buffering",
        b"x-sendfile",
        b"x-lighttpd-send-file",
        b"alt-svc",
        b"strict-transport-security",
        b"clear-site-data",
        b"content-security-policy",
        b"access-control-allow-origin",
        b"location",
        b"refresh",
        b"link",
        b"www-authenticate",
        b"x-envoy-upstream-service-time",
        b"via",
    ],
)
def test_what_a_client_is_not_told(name: bytes) -> None:
    assert to_client((name, b"x"), (b"etag", b"1")) == [(b"etag", b"1")]


@pytest.mark.parametrize(
    "field",
    [
        (b"retry-after", b"3"),
        (b"x-request-id", b"theirs"),
        (b"request-id", b"req_anthropic"),
        (b"x-ratelimit-remaining-tokens", b"10"),
        (b"retry-after-ms", b"300"),
        (b"openai-processing-ms", b"12"),
        (b"anthropic-ratelimit-requests-limit", b"5"),
        (b"x-should-retry", b"false"),
        (b"content-type", b"text/plain"),
        (b"content-disposition", b"attachment"),
        (b"cache-control", b"no-store"),
        (b"content-length", b"12"),
        (b"content-encoding", b"gzip"),
    ],
)
def test_what_a_client_is_told(field: tuple[bytes, bytes]) -> None:
    assert to_client(field) == [field]


@pytest.mark.parametrize(
    "connection",
    [[b"X-Secret"], [b"keep-alive, x-secret"], [b"close , X-SECRET ,"], [b"keep-alive", b"x-secret"], [b",,x-secret"]],
)
def test_what_connection_names_goes_no_further(connection: list[bytes]) -> None:
    fields = [*((b"connection", value) for value in connection), (b"x-secret", b"1"), (b"x-secrets", b"2")]
    for order in (fields, fields[::-1]):
        assert upstream(*order) == [(b"x-secrets", b"2")]
    named = [*((b"connection", value.lower().replace(b"x-secret", b"etag")) for value in connection)]
    fields = [*named, (b"etag", b"1"), (b"vary", b"2")]
    for order in (fields, fields[::-1]):
        assert to_client(*order) == [(b"vary", b"2")]


names = st.sampled_from([*HOP_BY_HOP, b"x-a", b"x-b", b"x-request-id", b"accept", b"cookie", b"set-cookie"])
plain = st.binary(max_size=8).filter(lambda value: value.strip() == value)
listed = st.lists(st.sampled_from([b"close", b"Keep-Alive", b"x-a", b"X-B", b"ACCEPT", b"x-request-id", b""]))
fields = st.lists(st.tuples(names, plain) | st.tuples(st.just(b"connection"), listed.map(b" , ".join)), max_size=12)


def passes(fields: Fields, *, but: set[bytes]) -> Fields:
    """RFC 9110, 7.6.1, spelt out once more."""
    named = {
        token.strip(b" \t").lower() for name, value in fields if name == b"connection" for token in value.split(b",")
    }
    return [field for field in fields if field[0] not in HOP_BY_HOP and field[0] not in named | but]


@given(fields)
def test_to_a_backend_all_else_passes_unchanged_and_in_order(fields: Fields) -> None:
    sent = [field for field in upstream(*fields) if field[0] != b"x-request-id"]
    assert sent == passes(fields, but={b"cookie", b"x-request-id"})


@given(fields)
def test_to_a_client_what_may_pass_is_unchanged_and_in_order(fields: Fields) -> None:
    kept = [field for field in passes(fields, but=set()) if field[0] == b"x-request-id"]
    assert to_client(*fields) == kept
    assert to_client(*fields, client_request_id="mine") == (kept or [(b"x-request-id", b"mine")])


class TestLength:
    def test_it_is_read_and_not_passed_on(self) -> None:
        incoming = Incoming([(b"content-length", b"12")])
        assert incoming.length == 12
        assert incoming.upstream == [OURS]
        assert Incoming([]).length is None

    @pytest.mark.parametrize(
        "fields",
        [
            [(b"content-length", b"1"), (b"transfer-encoding", b"chunked")],
            [(b"transfer-encoding", b"chunked"), (b"content-length", b"1")],
            [(b"content-length", b"0"), (b"transfer-encoding", b"identity")],
            [(b"content-length", b"1"), (b"content-length", b"1")],
            [(b"content-length", b"1"), (b"content-length", b"2")],
            [(b"content-length", b"0"), (b"content-length", b"0")],
            [(b"content-length", b"")],
            [(b"content-length", b"1, 1")],
            [(b"content-length", b"+1")],
            [(b"content-length", b"-1")],
            [(b"content-length", b"1_0")],
            [(b"content-length", b"0x10")],
            [(b"content-length", b"\xd9\xa1")],
            [(b"content-length", b"9" * 5000)],
            [(b"content-type", b"a/b"), (b"content-type", b"c/d")],
        ],
    )
    def test_what_could_mean_two_things_is_refused(self, fields: Fields) -> None:
        with pytest.raises(BadRequestError) as refused:
            Incoming(fields)
        assert (refused.value.status, refused.value.code) == (400, "invalid_headers")

    def test_chunked_alone_is_fine(self) -> None:
        assert Incoming([(b"transfer-encoding", b"chunked")]).length is None


@pytest.mark.parametrize("value", [b"gzip", b"GZIP", b"br", b"identity, gzip", b"zstd"])
def test_a_compressed_body_is_refused(value: bytes) -> None:
    with pytest.raises(EncodedRequestError) as refused:
        Incoming([(b"content-encoding", value)])
    assert (refused.value.status, refused.value.code) == (415, "unsupported_encoding")


@pytest.mark.parametrize("value", [b"identity", b"Identity", b""])
def test_a_body_that_is_not_compressed_passes(value: bytes) -> None:
    assert upstream((b"content-encoding", value)) == [(b"content-encoding", value)]


class TestRequestId:
    @pytest.mark.parametrize("value", [b"a", b"x" * 128, b"0b1e-4f", b"with space", b'"<>~'])
    def test_a_clients_is_passed_on(self, value: bytes) -> None:
        incoming = Incoming([(b"x-request-id", value)])
        assert incoming.request_id == value.decode()
        assert incoming.upstream == [(b"x-request-id", value), OURS]

    @pytest.mark.parametrize("value", [b"", b"x" * 129, b"tab\there", b"nul\0", b"\x7f", b"\x1b[2J", "ä".encode()])
    def test_one_that_is_long_or_cannot_be_shown_is_ignored(self, value: bytes) -> None:
        incoming = Incoming([(b"x-request-id", value)])
        assert incoming.request_id is None
        assert incoming.upstream == [OURS]

    def test_one_that_connection_names_is_for_this_connection_alone(self) -> None:
        incoming = Incoming([(b"x-request-id", b"a"), (b"connection", b"X-Request-Id")])
        assert incoming.request_id is None
        assert incoming.upstream == [OURS]
        named = [(b"x-request-id", b"theirs"), (b"connection", b"x-request-id")]
        assert to_client(*named, client_request_id="mine") == [(b"x-request-id", b"mine")]

    def test_it_is_echoed_where_the_backend_has_none(self) -> None:
        assert to_client(client_request_id="mine") == [(b"x-request-id", b"mine")]
        assert to_client((b"x-request-id", b"theirs"), client_request_id="mine") == [(b"x-request-id", b"theirs")]

    def test_answers_of_our_own_bear_both(self) -> None:
        assert own_fields("our-id", "mine") == [OWN_ID, (b"x-request-id", b"mine")]
        assert own_fields("our-id", None) == [OWN_ID, (b"x-request-id", b"our-id")]


@pytest.mark.parametrize(
    ("authorization", "token"),
    [
        (None, b""),
        (b"", b""),
        (b"Bearer", b""),
        (b"Bearer ", b""),
        (b"Bearer gsk_1", b"gsk_1"),
        (b"bearer   gsk_1 ", b"gsk_1"),
        (b"Basic gsk_1", b""),
        (b"Bearergsk_1", b""),
        (b"gsk_1", b""),
        (b"Bearer a b", b"a b"),
    ],
)
def test_bearer(authorization: bytes | None, token: bytes) -> None:
    assert bearer(authorization) == token


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ([], b""),
        ([(b"authorization", b"Bearer " + KEY)], KEY),
        ([(b"x-api-key", KEY)], KEY),
        ([(b"api-key", KEY)], KEY),
        ([(b"authorization", b"Bearer " + KEY), (b"x-api-key", KEY)], KEY),
        ([(b"authorization", b"Bearer unused"), (b"x-api-key", KEY)], KEY),
        ([(b"authorization", b"Bearer " + KEY), (b"api-key", b"unused")], KEY),
        ([(b"x-api-key", b"sk-ant-1")], b"sk-ant-1"),
        ([(b"authorization", b""), (b"x-api-key", b"sk-ant-1")], b"sk-ant-1"),
    ],
)
def test_the_key_may_stand_where_clients_of_several_apis_put_it(fields: Fields, key: bytes) -> None:
    for order in (fields, fields[::-1]):
        incoming = Incoming(order)
        assert (incoming.key, incoming.upstream) == (key, [OURS])


@pytest.mark.parametrize(
    "fields",
    [
        [(b"authorization", b"Bearer " + KEY), (b"x-api-key", OTHER_KEY)],
        [(b"x-api-key", KEY), (b"x-api-key", KEY)],
        [(b"authorization", b"Bearer " + KEY), (b"authorization", b"Bearer " + KEY)],
    ],
)
def test_which_key_counts_is_never_a_guess(fields: Fields) -> None:
    with pytest.raises(BadRequestError) as refused:
        Incoming(fields)
    assert refused.value.code == "invalid_headers"


@pytest.mark.parametrize(
    ("via", "loop"),
    [([], False), ([b"1.1 gasket-2"], False), ([b"1.1 gasket-1"], True), ([b"1.0 squid, 1.1 gasket-1"], True)],
)
def test_a_request_that_was_here_before_is_known(via: list[bytes], loop: bool) -> None:
    incoming = Incoming([(b"via", value) for value in via])
    assert incoming.passed_through(b"gasket-1") is loop
    assert incoming.upstream == [*((b"via", value) for value in via), OURS]


@pytest.mark.parametrize(
    ("value", "end_user"),
    [(b" bob ", "bob"), ("é".encode(), "é"), (b"\xff", "\ufffd"), (b"b" * 9000, "b" * 200), (b" ", None)],
)
def test_the_end_user_is_short_and_goes_no_further(value: bytes, end_user: str | None) -> None:
    fields = [(b"x-who", value), (b"x-other", b"1"), (b"x-who", b"alice")]
    incoming = Incoming(fields)
    assert incoming.take_end_user(fields, b"x-who") == end_user
    assert [name for name, _ in incoming.upstream] == [b"x-other", b"accept-encoding"]


def test_a_key_is_no_end_user() -> None:
    assert Incoming([]).take_end_user([(b"x-who", b"gsk_" + b"0" * 48)], b"x-who") is None
