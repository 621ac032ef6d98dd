"""Sign-in links: a browser gets the session of a key without the key passing through it.

A link is good once and for ten minutes. The database holds an HMAC of its token, and the hash of the key's secret that
it was made with: it opens what that secret opens, and no longer (decision 020 says the same of the session it becomes).
"""

from __future__ import annotations

import secrets
from datetime import timedelta

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from app.core.clock import now
from app.core.problems import ProblemError
from app.core.security import hash_secret, require_valid
from app.db.tables import ApiKey, LoginLink

LIFETIME = timedelta(minutes=10)
PATH = "/login/link"
_TOKEN_BYTES = 32


def make(session: Session, pepper: bytes, key: ApiKey, secret_hash: str) -> tuple[LoginLink, str]:
    """Add a link to the session of a key whose secret has this hash; return its row, and the path with the token."""
    token = secrets.token_urlsafe(_TOKEN_BYTES)
    link = LoginLink(
        key_id=key.id, secret_hash=secret_hash, token_hash=_hash(token, pepper), expires_at=now() + LIFETIME
    )
    session.add(link)
    session.flush()
    return link, f"{PATH}?token={token}"


def find(session: Session, pepper: bytes, token: str) -> tuple[LoginLink, ApiKey]:
    """Return a link that can be used, and its key; it stays as good as it is.

    Raises:
        ProblemError: 410, it was used, is past its time, or never was.
        UnauthorizedError: its key opens nothing any more.
    """
    query = select(LoginLink).where(LoginLink.token_hash == _hash(token, pepper), LoginLink.expires_at > now())
    link = session.scalars(query).one_or_none()
    if link is None:
        raise _gone()
    key = session.get(ApiKey, link.key_id)
    return link, require_valid(key, link.secret_hash)


def use(session: Session, pepper: bytes, token: str) -> tuple[LoginLink, ApiKey]:
    """As `find`; of all who try at once, one gets it.

    Raises:
        ProblemError, UnauthorizedError: as `find`.
    """
    link, key = find(session, pepper, token)
    session.expunge(link)
    taken = session.execute(delete(LoginLink).where(LoginLink.id == link.id).returning(LoginLink.id)).all()
    if not taken:
        raise _gone()
    return link, key


def purge(session: Session) -> None:
    """Forget links that are past their time."""
    session.execute(delete(LoginLink).where(LoginLink.expires_at <= now()))


def _hash(token: str, pepper: bytes) -> str:
    return hash_secret(f"login link {token}", pepper)


def _gone() -> ProblemError:
    return ProblemError(
        410,
        "login_link_gone",
        "Gone",
        "this sign-in link has been used, or its time is over",
        hint="`nupes login-link` makes another.",
    )
