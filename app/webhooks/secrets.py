"""Signing secrets: made here, kept encrypted (docs/decisions/009), opened only to sign."""

from __future__ import annotations

import base64
import secrets

PREFIX = "whsec_"
_BYTES = 32
_PURPOSE = b"nupes webhook secrets 1"


class UnreadableSecretError(Exception):
    """A stored secret was encrypted under another secret key of the service."""


class SecretBox:
    """Encrypts and opens signing secrets.

    Args:
        pepper: the service's secret key, from which the key of this purpose is derived (HKDF, RFC 5869).
    """

    def __init__(self, pepper: bytes) -> None:
        # Imported where they are used: 7 MB that an API process spares until it makes its first secret.
        from cryptography.fernet import Fernet
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        key = HKDF(algorithm=SHA256(), length=32, salt=None, info=_PURPOSE).derive(pepper)
        self._fernet = Fernet(base64.urlsafe_b64encode(key))

    def make(self) -> tuple[str, str]:
        """Return a new secret as its owner gets it, and as the database keeps it."""
        secret = PREFIX + base64.b64encode(secrets.token_bytes(_BYTES)).decode()
        return secret, self._fernet.encrypt(secret.encode()).decode()

    def key(self, sealed: str) -> bytes:
        """The key bytes of a stored secret.

        Raises:
            UnreadableSecretError: it was stored under another secret key.
        """
        from cryptography.fernet import InvalidToken

        try:
            secret = self._fernet.decrypt(sealed.encode()).decode()
        except InvalidToken:
            raise UnreadableSecretError(
                "a webhook's secret can not be decrypted: give this worker the NUPES_SECRET_KEY of the API"
            ) from None
        return base64.b64decode(secret.removeprefix(PREFIX))
