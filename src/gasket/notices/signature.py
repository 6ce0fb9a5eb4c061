"""Signatures as Standard Webhooks 1.0.0 has them (its specification, "Signature scheme")."""

from __future__ import annotations

import base64
import hashlib
import hmac


def sign(identity: str, timestamp: int, body: bytes, secret: bytes | None) -> dict[str, str]:
    """The header fields of one try. `timestamp` is that of the try, in seconds since 1970."""
    fields = {"webhook-id": identity, "webhook-timestamp": str(timestamp)}
    if secret is not None:
        signed = f"{identity}.{timestamp}.".encode() + body
        signature = base64.b64encode(hmac.new(secret, signed, hashlib.sha256).digest()).decode()
        fields["webhook-signature"] = f"v1,{signature}"
    return fields
