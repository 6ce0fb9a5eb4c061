from __future__ import annotations

from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gasket.proxy.endpoints import Kind, find_endpoint, find_route
from gasket.server.errors import BadRequestError


def kind(method: str, path: str) -> Kind:
    return find_endpoint(method, b"/v1" + path.encode()).kind


@pytest.mark.parametrize(
    "path",
    [
        "/chat/completions",
        "/completions",
        "/embeddings",
        "/responses",
        "/moderations",
        "/images/generations",
        "/images/edits",
        "/images/something-new",
        "/audio/speech",
        "/audio/transcriptions",
        "/audio/translations",
        "/rerank",
        "/messages",
        "/messages/count_tokens",
        "/responses/compact",
        "/responses/input_tokens",
        "/score",
        "/classify",
        "/tokenize",
        "/detokenize",
        "/pooling",
    ],
)
def test_what_leaves_nothing_behind(path: str) -> None:
    assert kind("POST", path) is Kind.STATELESS
    for method in ("GET", "DELETE", "PUT", "PATCH", "HEAD", "OPTIONS", "post", "PROPFIND"):
        assert kind(method, path) is Kind.STATEFUL


@pytest.mark.parametrize("path", ["/audio/voices", "/audio/models"])
def test_lists_of_what_a_backend_can_do(path: str) -> None:
    endpoint = find_endpoint("GET", b"/v1" + path.encode())
    assert (endpoint.kind, endpoint.takes_body, endpoint.metered) == (Kind.STATELESS, False, False)
    assert find_route("GET", path) == f"/v1{path}"
    for method in ("DELETE", "PUT", "HEAD"):
        assert kind(method, path) is Kind.STATEFUL


@pytest.mark.parametrize(
    "path",
    [
        "/files",
        "/messages/batches",
        "/messages/batches/b/cancel",
        "/files/file-1/content",
        "/batches",
        "/responses/resp_1",
        "/responses/resp_1/cancel",
        "/chat/completions/chatcmpl-1",
        "/vector_stores",
        "/fine_tuning/jobs",
        "/organization/usage/completions",
        "/images",
        "/images/edits/1",
        "/images/Edits",
        "/audio/voices/1",
        "/Chat/completions",
        "/chat%20/completions",
        "/models",
        "/models/ft:1",
        "/modelsx",
        "/a=b/d,e/~f!$&'()*+:@-._",
        "/...",
        "/.well-known",
        "/%25%C3%A4",
    ],
)
def test_everything_else_is_in_the_upstreams_account(path: str) -> None:
    endpoint = find_endpoint("POST", b"/v1" + path.encode())
    assert endpoint.kind is Kind.STATEFUL
    assert endpoint.path == path


@pytest.mark.parametrize(
    ("path", "decoded"),
    [
        ("/models", "/models"),
        ("/models/", "/models/"),
        ("/models/gpt", "/models/gpt"),
        ("/models/org/gpt", "/models/org/gpt"),
        ("/models/org%2Fgpt%3a1", "/models/org/gpt:1"),
        ("/models/gr%C3%B6%C3%9Fe", "/models/größe"),
    ],
)
def test_models_may_have_a_slash(path: str, decoded: str) -> None:
    endpoint = find_endpoint("GET", b"/v1" + path.encode())
    assert (endpoint.kind, endpoint.path) == (Kind.MODELS, decoded)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "//",
        "/files/",
        "//files",
        "/files//1",
        "/.",
        "/..",
        "/files/..",
        "/files/../chat/completions",
        "/files/./1",
        "/files/..;/1",
        "/files/..;a=b",
        "/.;/files",
        "/files/%2e%2e/1",
        "/files/.%2E",
        "/;/files",
        "/audio/transcriptions;x",
        "/audio/transcriptions%3bx",
        "/audio/transcriptions%3Fx",
        "/audio/transcriptions%23x",
        "/audio/transcription%73",
        "/%63hat/completions",
        "/files/%7E%2d%5f%30%41%5A%7a",
        "/files%2f1",
        "/files%2F1",
        "/files%5c1",
        "/files%5C1",
        "/files\\1",
        "/files/%00",
        "/files/%0d%0a",
        "/files/%7f",
        "/files/%",
        "/files/%2",
        "/files/%zz",
        "/files/a b",
        "/files/a?b",
        "/files/a#b",
        "/files/ä",
        "/files/a\n",
        "/chat/completions/",
        "61/chat/completions",
    ],
)
def test_a_path_that_could_mean_two_things_is_refused(path: str) -> None:
    for method in ("GET", "POST"):
        with pytest.raises(BadRequestError) as refused:
            find_endpoint(method, b"/v1" + path.encode())
        assert (refused.value.status, refused.value.code) == (400, "invalid_path")


PIECES = st.sampled_from(
    [
        "/",
        "..",
        ".",
        "%2e",
        "%73",
        "%7e",
        "%20",
        "%C3",
        "%2F",
        "%5C",
        "%",
        "a",
        "files",
        "images",
        "edits",
        "\\",
        ";",
        "%00",
        "%25",
    ]
)


@given(st.lists(PIECES, max_size=8).map("".join))
def test_what_is_passed_on_has_the_same_segments_decoded_or_not(rest: str) -> None:
    try:
        path = find_endpoint("POST", b"/v1" + rest.encode()).path
    except BadRequestError:
        return
    assert path == rest
    first, *segments = unquote(path).replace("\\", "/").split("/")
    assert first == ""
    assert segments == [unquote(segment) for segment in path[1:].split("/")]
    assert not {"", ".", ".."} & set(segments)


@given(st.integers(0, 255))
def test_what_may_be_encoded_is_what_has_to_be(byte: int) -> None:
    """RFC 3986, 2.3, and what would be another path for a server that decodes first."""
    plain = chr(byte)
    refused = byte < 32 or byte == 127 or (plain.isascii() and plain.isalnum()) or plain in "-._~/\\;?#"
    for path in (f"/files/a%{byte:02x}", f"/files/a%{byte:02X}"):
        try:
            find_endpoint("POST", b"/v1" + path.encode())
        except BadRequestError:
            assert refused
        else:
            assert not refused


def test_which_streams_can_be_asked_for_their_usage_and_whose_tokens_are_estimated() -> None:
    asked = {"/chat/completions": True, "/completions": True, "/embeddings": False, "/responses": False}
    for path, asks in asked.items():
        endpoint = find_endpoint("POST", b"/v1" + path.encode())
        assert (endpoint.asks_for_usage, endpoint.estimates_tokens) == (asks, True)
    for path in ("/audio/speech", "/images/edits", "/images/new", "/files", "/rerank"):
        endpoint = find_endpoint("POST", b"/v1" + path.encode())
        assert not endpoint.asks_for_usage
        assert not endpoint.estimates_tokens
    for path in ("/messages", "/responses/compact"):
        endpoint = find_endpoint("POST", b"/v1" + path.encode())
        assert (endpoint.asks_for_usage, endpoint.estimates_tokens) == (False, True)
