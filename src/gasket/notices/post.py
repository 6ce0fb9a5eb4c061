"""One try to deliver a message."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from gasket.notices.webhook import NotTaken
from gasket.upstream.address import address_of, request_target
from gasket.upstream.client import Timeouts, UpstreamClient
from gasket.upstream.failures import BackendDeniedError, UpstreamError, without_address

TRY_LIMIT = 10.0
"""Seconds for one try: the look-up of the name, the connection, and the head of the answer."""

_TIMEOUTS = Timeouts(connect=TRY_LIMIT, first_byte=TRY_LIMIT, between_pieces=TRY_LIMIT)
_MAY_PASS = frozenset({408, 429})


async def post(url: str, body: bytes, fields: Mapping[str, str]) -> NotTaken | None:
    """None once the receiver has taken it, which any 2xx says. Redirects are not followed.

    What is said of a failure names no host: a host, too, may be a secret that lets anybody write to the receiver.
    """
    client = UpstreamClient()
    try:
        async with asyncio.timeout(TRY_LIMIT):
            response = await client.send(
                "POST",
                address_of(url),
                request_target(url),
                fields=[(name.encode(), value.encode()) for name, value in fields.items()],
                body=body,
                timeouts=_TIMEOUTS,
            )
            status = response.status
            response.close()
    except TimeoutError:
        return NotTaken(f"did not answer within {TRY_LIMIT:.0f} s", final=False)
    except BackendDeniedError:
        return NotTaken("has a link-local address, or one of a cloud's metadata, which is denied", final=True)
    except UpstreamError as error:
        return NotTaken(without_address(error), final=False)
    finally:
        await client.close()
    if 200 <= status < 300:
        return None
    return NotTaken(f"answered with status {status}", final=300 <= status < 500 and status not in _MAY_PASS)
