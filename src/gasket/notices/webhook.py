"""The messages that wait, and the thread that sends them.

A thread, because messages come from event loops that are about to end and from commands that have none. The sender puts
a message into a bounded queue and goes on; only `flush` waits.
"""

from __future__ import annotations

import asyncio
import logging
import pkgutil
import queue
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple
from uuid import uuid4

import msgspec

from gasket.notices.signature import sign

FLUSH_LIMIT = 5.0
"""Seconds for which the end of a process waits for messages that are not delivered yet."""
MOST_WAITING = 100
PAUSES = (1.0, 5.0, 30.0, 120.0, 300.0)
"""Seconds between the tries to deliver one message."""

_HURRIED_PAUSE = 0.5
_LONGEST_TEXT = 3000
_POST = "gasket.notices.post:post"

log = logging.getLogger("gasket.notices")


class NotTaken(NamedTuple):
    """Why the receiver did not take a message; `final`: another try would end the same way."""

    reason: str
    final: bool


Post = Callable[[str, bytes, Mapping[str, str]], Awaitable[NotTaken | None]]


class Message(NamedTuple):
    """A message: its id, which all tries share, its type, and its body as JSON."""

    identity: str
    kind: str
    body: bytes


class Webhook:
    """Sends messages to one URL, one after the other, each until it is taken or its tries are used up.

    `source` is what every message says of its sender; `release` and `host` of it are in the text, too. `secret` is the
    key of the signatures; without it messages are not signed.
    """

    def __init__(
        self, url: str, secret: bytes | None, source: Mapping[str, str], *, pauses: Sequence[float] = PAUSES
    ) -> None:
        self._url = url
        self._secret = secret
        self._source = source
        self._pauses = pauses
        self._waiting: queue.Queue[Message] = queue.Queue(MOST_WAITING)
        self._hurry = threading.Event()
        self._start = threading.Lock()
        self._thread: threading.Thread | None = None

    def notify(self, kind: str, text: str, data: Mapping[str, object]) -> None:
        """Queue a message. Any thread may call this; it returns at once.

        `kind` is a type as in `migration.completed`, `text` a sentence for people, `data` the same for programs.
        """
        body = {
            "type": kind,
            "timestamp": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "text": _plain(f"Gasket {self._source['release']} on {self._source['host']}: {text}"),
            "data": {**self._source, **data},
        }
        try:
            self._waiting.put_nowait(Message(f"msg_{uuid4().hex}", kind, msgspec.json.encode(body)))
        except queue.Full:
            log.warning("%d messages wait for the webhook already: %s is not sent", MOST_WAITING, kind)
        with self._start:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="gasket-webhook", daemon=True)
                self._thread.start()

    def flush(self, within: float = FLUSH_LIMIT) -> None:
        """Wait until every message is delivered or given up, at most that many seconds. Pauses are short meanwhile."""
        self._hurry.set()
        with self._waiting.all_tasks_done:
            done = self._waiting.all_tasks_done.wait_for(lambda: not self._waiting.unfinished_tasks, within)
        self._hurry.clear()
        if not done:
            log.warning("the webhook has not taken every message within %g s; the rest is not waited for", within)

    def _work(self) -> None:
        post: Post = pkgutil.resolve_name(_POST)  # a process that sends nothing does not import an HTTP client
        while True:
            message = self._waiting.get()
            try:
                self._deliver(message, post)
            except Exception as error:  # its text may have the URL in it; without this thread nobody would be told
                log.error("%s is not sent to the webhook, because of an error: %s", message.kind, type(error).__name__)
            finally:
                self._waiting.task_done()

    def _deliver(self, message: Message, post: Post) -> None:
        complained = False
        for pause in (*self._pauses, None):
            refusal = asyncio.run(_post(post, self._url, message.body, self._fields(message)))
            if refusal is None:
                return
            if refusal.final or pause is None:
                log.warning("the webhook %s; %s is given up", refusal.reason, message.kind)
                return
            if not complained:
                complained = True
                log.warning("the webhook %s; trying again with %s", refusal.reason, message.kind)
            if self._hurry.wait(pause):
                time.sleep(_HURRIED_PAUSE)

    def _fields(self, message: Message) -> dict[str, str]:
        fields = {"content-type": "application/json", "user-agent": "gasket"}
        return fields | sign(message.identity, int(time.time()), message.body, self._secret)


async def _post(post: Post, url: str, body: bytes, fields: Mapping[str, str]) -> NotTaken | None:
    return await post(url, body, fields)


def _plain(text: str) -> str:
    """Without the characters by which a name could become a mention or a link in Slack."""
    return text.replace("<", "[").replace(">", "]")[:_LONGEST_TEXT]
