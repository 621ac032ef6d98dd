"""Signing secrets: made here, kept encrypted (docs/decisions/009), opened only to sign."""

from __future__ import annotations

import base64
import secrets

from app.core.sealing import Sealer, UnreadableSecretError

__all__ = ["PREFIX", "SecretBox", "UnreadableSecretError"]

PREFIX = "whsec_"
_BYTES = 32
_PURPOSE = b"nupes webhook secrets 1"


class SecretBox:
    """Encrypts and opens signing secrets.

    Args:
        pepper: the service's secret key, from which the key of this purpose is derived.
    """

    def __init__(self, pepper: bytes) -> None:
        self._sealer = Sealer(pepper, _PURPOSE)

    def make(self) -> tuple[str, str]:
        """Return a new secret as its owner gets it, and as the database keeps it."""
        secret = PREFIX + base64.b64encode(secrets.token_bytes(_BYTES)).decode()
        return secret, self._sealer.seal(secret)

    def key(self, sealed: str) -> bytes:
        """The key bytes of a stored secret.

        Raises:
            UnreadableSecretError: it was stored under another secret key.
        """
        return base64.b64decode(self._sealer.open(sealed).removeprefix(PREFIX))
