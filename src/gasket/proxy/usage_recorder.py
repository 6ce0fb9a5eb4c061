"""Hands each request of a valid key on to be recorded."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from gasket.proxy.exchange import Exchange, Outcome
from gasket.usage.entry import UsageEntry
from gasket.usage.writer import UsageWriter


class UsageRecorder:
    """Records each request that has ended.

    A request that a limit has refused leaves no record: writing it would cost as much as the limit saves. A request
    without a valid key leaves none either.
    """

    def __init__(self, writer: UsageWriter) -> None:
        self._writer = writer

    def __call__(self, exchange: Exchange) -> None:
        """Never waits."""
        access = exchange.access
        if access is None or exchange.outcome is Outcome.LIMITED:
            return
        first_byte, duration = exchange.first_byte, exchange.ended - exchange.started
        self._writer.put(
            UsageEntry(
                request_id=exchange.request_id,
                started_at=datetime.fromtimestamp(time.time() - duration, UTC),
                key_id=access.key_id,
                user_email=access.user_email,
                profile_id=access.profile.id,
                backend_id=None if exchange.backend is None else exchange.backend.id,
                model=exchange.model,
                path=f"/v1{exchange.path}",
                status=exchange.status,
                outcome=exchange.outcome.value,
                first_byte_ms=None if first_byte is None else (first_byte - exchange.started) * 1000,
                duration_ms=duration * 1000,
                bytes_in=exchange.bytes_in,
                bytes_out=exchange.bytes_out,
                prompt_tokens=exchange.prompt_tokens,
                completion_tokens=exchange.completion_tokens,
                estimated=exchange.estimated,
                retries=exchange.retries,
                cached_tokens=exchange.cached_tokens,
                reasoning_tokens=exchange.reasoning_tokens,
                audio_tokens=exchange.audio_tokens,
                end_user=exchange.end_user,
            ),
            previous_digest=access.previous_digest,
        )
