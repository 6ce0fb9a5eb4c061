"""Messages to a webhook, against a server that listens on this machine."""

from __future__ import annotations

import logging
import socket
import ssl
import time
from base64 import b64encode
from collections.abc import Iterator

import pytest

from gasket.notices.post import TRY_LIMIT
from gasket.notices.webhook import MOST_WAITING, Webhook
from gasket.upstream.failures import NotConnectedError, without_address
from tests.receiver import PATH, Receiver, receiving

SECRET = b"a secret of twenty-four bytes"
SOURCE = {"release": "1.4.0", "host": "db-1", "process": "db-1:77", "schema": "public"}
PAUSES = (0.01, 0.02)
WITHIN = 60.0
"""Seconds for all messages to be delivered. Far more than it takes: the machine may have other things to do."""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


def to(receiver: Receiver) -> Webhook:
    return Webhook(receiver.url, SECRET, SOURCE, pauses=PAUSES)


def test_a_message_is_signed_as_standard_webhooks_has_it(receiver: Receiver) -> None:
    webhook = Webhook(f"{receiver.url}?of=a%20kind", SECRET, SOURCE)
    webhook.notify("backend.set_aside", "Model '<!channel>' is set aside.", {"backend": "main"})
    webhook.flush(WITHIN)
    [received] = receiver.received
    received.verify(f"whsec_{b64encode(SECRET).decode()}")
    message = received.message
    assert (received.path, received.fields["content-type"]) == (f"{PATH}?of=a%20kind", "application/json")
    assert message.pop("timestamp").endswith("+00:00")
    assert message == {
        "type": "backend.set_aside",
        "text": "Gasket 1.4.0 on db-1: Model '[!channel]' is set aside.",
        "data": {**SOURCE, "backend": "main"},
    }


def test_without_a_secret_it_is_not_signed(receiver: Receiver) -> None:
    webhook = Webhook(receiver.url, None, SOURCE)
    webhook.notify("drift.detected", "...", {})
    webhook.flush(WITHIN)
    assert "webhook-signature" not in receiver.received[0].fields


def test_a_failed_try_is_repeated_with_the_same_id_and_in_order(receiver: Receiver) -> None:
    receiver.answers = [503, 429, 408]
    webhook = Webhook(receiver.url, SECRET, SOURCE, pauses=[0.01] * 3)
    webhook.notify("migration.completed", "first", {})
    webhook.notify("drift.detected", "second", {})
    webhook.flush(WITHIN)
    assert receiver.kinds == ["migration.completed"] * 4 + ["drift.detected"]
    identities = [received.fields["webhook-id"] for received in receiver.received]
    assert len(set(identities[:4])) == 1
    assert identities[4] != identities[0]


@pytest.mark.parametrize(("answers", "tries"), [([404], 1), ([302], 1), ([500] * 3, 3)])
def test_what_is_not_taken_is_given_up_and_the_next_message_goes(
    receiver: Receiver, caplog: pytest.LogCaptureFixture, answers: list[int], tries: int
) -> None:
    receiver.answers = list(answers)
    webhook = to(receiver)
    webhook.notify("migration.failed", "first", {})
    webhook.notify("drift.detected", "second", {})
    webhook.flush(WITHIN)
    assert receiver.kinds == ["migration.failed"] * tries + ["drift.detected"]
    assert {received.path for received in receiver.received} == {PATH}
    assert caplog.messages[-1] == f"the webhook answered with status {answers[-1]}; migration.failed is given up"


def test_a_silent_receiver_is_waited_for_as_long_as_said_and_the_queue_is_bounded(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.silent.set()
    webhook = to(receiver)
    started = time.monotonic()
    for _ in range(MOST_WAITING + 5):  # the thread takes at most one out meanwhile
        webhook.notify("backend.set_aside", "...", {})
    webhook.flush(0.3)
    assert 0.3 <= time.monotonic() - started < TRY_LIMIT, "it waits neither for the receiver nor for the end of a try"
    dropped = [message for message in caplog.messages if "is not sent" in message]
    assert len(dropped) in (4, 5)
    assert caplog.messages[-1].startswith("the webhook has not taken every message within 0.3 s")
    receiver.silent.clear()
    receiver.speaks.set()
    webhook.flush(WITHIN)
    assert len(receiver.received) == MOST_WAITING + 5 - len(dropped)


def test_who_waits_for_the_end_makes_pauses_short_and_no_longer_than_that(receiver: Receiver) -> None:
    receiver.answers = [503] * 100
    webhook = Webhook(receiver.url, SECRET, SOURCE, pauses=[600.0] * 100)
    webhook.flush(WITHIN)  # nothing waits: it must not hurry what comes later
    webhook.notify("migration.failed", "...", {})
    until_received(receiver, 1)
    time.sleep(1.0)
    assert len(receiver.received) == 1
    webhook.flush(1.2)
    assert len(receiver.received) <= 4, "a receiver in trouble is asked in a tight loop"
    receiver.answers = []
    webhook.flush(WITHIN)
    assert len(receiver.received) > 1


def until_received(receiver: Receiver, count: int) -> None:
    deadline = time.monotonic() + WITHIN
    while len(receiver.received) < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_receiver_that_never_answers_is_given_up(
    receiver: Receiver, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gasket.notices.post.TRY_LIMIT", 1.0)
    receiver.silent.set()
    webhook = Webhook(receiver.url, SECRET, SOURCE, pauses=())
    webhook.notify("migration.failed", "...", {})
    webhook.flush(WITHIN)
    assert caplog.messages == ["the webhook did not answer within 1 s; migration.failed is given up"]


def test_an_address_that_is_denied_is_tried_once(caplog: pytest.LogCaptureFixture) -> None:
    webhook = Webhook("http://169.254.169.254/latest", SECRET, SOURCE, pauses=PAUSES)
    webhook.notify("migration.failed", "...", {})
    webhook.flush(WITHIN)
    [line] = caplog.messages
    assert line.endswith("which is denied; migration.failed is given up")


def test_an_error_of_ours_ends_one_message_and_shows_no_url(caplog: pytest.LogCaptureFixture) -> None:
    webhook = Webhook("http://127.0.0.1:1/s\u00e9cret", SECRET, SOURCE, pauses=PAUSES)
    webhook.notify("migration.failed", "...", {})
    webhook.notify("drift.detected", "...", {})
    webhook.flush(WITHIN)
    why = "is not sent to the webhook, because of an error: UnicodeEncodeError"
    assert caplog.messages == [f"migration.failed {why}", f"drift.detected {why}"]


def test_a_text_is_bounded(receiver: Receiver) -> None:
    webhook = to(receiver)
    webhook.notify("migration.failed", "x" * 10_000, {})
    webhook.flush(WITHIN)
    assert len(receiver.received[0].message["text"]) == 3000


def test_no_log_line_shows_where_the_messages_go(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with receiving() as gone:
        url = gone.url
    webhook = Webhook(url, SECRET, SOURCE, pauses=PAUSES)
    webhook.notify("migration.failed", "...", {})
    webhook.flush(WITHIN)
    assert caplog.messages == [
        "the webhook refuses connections; trying again with migration.failed",
        "the webhook refuses connections; migration.failed is given up",
    ]
    assert url.split("/")[2] not in f"{caplog.text}{webhook!r}"


def untrusted() -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed: a-secret-host")
    error.verify_code = 18
    return error


@pytest.mark.parametrize(
    ("cause", "told"),
    [
        (socket.gaierror(-2, "Name or service not known"), "has a name that does not resolve"),
        (untrusted(), "is not trusted: its certificate is self-signed"),
        (ssl.SSLError(1, "WRONG_VERSION_NUMBER"), "does not speak TLS; it may be http instead of https"),
        (ConnectionRefusedError(111, "Connection refused"), "refuses connections"),
        (OSError(113, "No route to host"), "cannot be connected to"),
    ],
)
def test_it_is_said_why_there_is_no_connection_and_not_where(cause: OSError, told: str) -> None:
    error = NotConnectedError("cannot be reached at a-secret-host:443")
    error.__cause__ = cause
    assert without_address(error) == told
