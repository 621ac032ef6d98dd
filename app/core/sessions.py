"""Sessions of browsers: an API key exchanged for a signed cookie, and the token that guards it against forged requests.

The cookie is `<key id>.<expiry>.<nonce>.<signature>`. The signature is an HMAC over the rest and over the hash of the
secret it was exchanged for, so a session opens what that secret opens and no longer: it ends when the key is revoked,
expires, or is rotated (with the overlap of the rotation). Nothing is stored.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from starlette.requests import Request

from app.core.clock import now
from app.core.problems import ProblemError, UnauthorizedError

COOKIE = "nupes_session"
CSRF_HEADER = "X-CSRF-Token"
LIFETIME = timedelta(hours=12)
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_TOKEN = re.compile(r"(key_[0-9a-z]{26})\.([0-9]{1,11})\.([0-9a-f]{32})\.([0-9a-f]{64})")


@dataclass(frozen=True)
class SessionToken:
    """A cookie that has the form of one; whether it is genuine, `matches` says."""

    key_id: str
    expires_at: datetime
    nonce: str
    signature: str

    @classmethod
    def issue(cls, key_id: str, secret_hash: str, pepper: bytes, lifetime: timedelta = LIFETIME) -> SessionToken:
        """A new session of the key whose secret has this hash."""
        expires_at = (now() + lifetime).replace(microsecond=0)
        nonce = secrets.token_hex(16)
        return cls(key_id, expires_at, nonce, _sign(key_id, expires_at, nonce, secret_hash, pepper))

    @classmethod
    def parse(cls, value: str) -> SessionToken:
        """Read a cookie.

        Raises:
            UnauthorizedError: it is no session, or one whose time is over.
        """
        match = _TOKEN.fullmatch(value)
        if match is None:
            raise ended_session()
        token = cls(match[1], datetime.fromtimestamp(int(match[2]), UTC), match[3], match[4])
        if token.expires_at <= now():
            raise ended_session()
        return token

    def matches(self, secret_hash: str, pepper: bytes) -> bool:
        """Whether it was issued for the secret with this hash."""
        expected = _sign(self.key_id, self.expires_at, self.nonce, secret_hash, pepper)
        return hmac.compare_digest(expected, self.signature)

    def csrf_token(self, pepper: bytes) -> str:
        """What requests that change something have to carry beside the cookie; 64 hex digits."""
        return _digest(pepper, "csrf", self.signature)

    def __str__(self) -> str:
        return f"{self.key_id}.{int(self.expires_at.timestamp())}.{self.nonce}.{self.signature}"


def ended_session() -> UnauthorizedError:
    """The refusal of a cookie that opens nothing, or nothing any more."""
    return UnauthorizedError("this session has ended", code="session_ended", hint="Sign in again at /login.")


def check_csrf(request: Request, token: SessionToken, pepper: bytes) -> None:
    """Refuse a request that another site may have made the browser send.

    Raises:
        ProblemError: 403, it changes something and carries no token of the session.
    """
    if request.method in SAFE_METHODS:
        return
    sent = request.headers.get(CSRF_HEADER, "")
    if not hmac.compare_digest(sent.encode(), token.csrf_token(pepper).encode()):
        raise csrf_refusal(f"the header {CSRF_HEADER} is missing or of another session")


def csrf_refusal(detail: str) -> ProblemError:
    """The answer to a request whose sender is not known to be a page of ours."""
    return ProblemError(403, "csrf", "Forbidden", detail, hint="Reload the page and try again, or send an API key.")


def _sign(key_id: str, expires_at: datetime, nonce: str, secret_hash: str, pepper: bytes) -> str:
    return _digest(pepper, "session", key_id, str(int(expires_at.timestamp())), nonce, secret_hash)


def _digest(pepper: bytes, *parts: str) -> str:
    return hmac.new(pepper, "\n".join(("nupes", *parts)).encode(), hashlib.sha256).hexdigest()
