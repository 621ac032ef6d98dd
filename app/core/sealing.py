"""What the database keeps encrypted: secrets that have to be used as they are, so that a hash is not enough."""

from __future__ import annotations

import base64


class UnreadableSecretError(Exception):
    """A stored secret was encrypted under another secret key of the service."""


class Sealer:
    """Encrypts and opens secrets with Fernet (docs/decisions/009).

    Args:
        pepper: the service's secret key.
        purpose: what the secrets are for; its key is derived from the pepper (HKDF, RFC 5869) for it alone.
    """

    def __init__(self, pepper: bytes, purpose: bytes) -> None:
        # Imported where they are used: 7 MB that an API process spares until it meets its first secret.
        from cryptography.fernet import Fernet
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        key = HKDF(algorithm=SHA256(), length=32, salt=None, info=purpose).derive(pepper)
        self._fernet = Fernet(base64.urlsafe_b64encode(key))

    def seal(self, secret: str) -> str:
        """Return what the database keeps."""
        return self._fernet.encrypt(secret.encode()).decode()

    def open(self, sealed: str) -> str:
        """Return a secret that was sealed.

        Raises:
            UnreadableSecretError: it was sealed under another secret key, or for another purpose.
        """
        from cryptography.fernet import InvalidToken

        try:
            return self._fernet.decrypt(sealed.encode()).decode()
        except InvalidToken:
            raise UnreadableSecretError(
                "a stored secret can not be decrypted: give this worker the NUPES_SECRET_KEY of the API"
            ) from None
