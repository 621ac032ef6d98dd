"""The headers of a message (Standard Webhooks 1.0, "Webhook headers" and "Signature scheme")."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Iterable
from datetime import datetime


def signed_headers(message_id: str, moment: datetime, body: bytes, keys: Iterable[bytes]) -> dict[str, str]:
    """Return `webhook-id`, `-timestamp` and `-signature`; one signature for each key, the newest first."""
    timestamp = str(int(moment.timestamp()))
    content = f"{message_id}.{timestamp}.".encode() + body
    return {
        "webhook-id": message_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": " ".join(_sign(content, key) for key in keys),
    }


def _sign(content: bytes, key: bytes) -> str:
    return "v1," + base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode()
