"""The API key of a data folder: the one clients on this machine have, or a new one; and a way in for a browser."""

from __future__ import annotations

from sqlalchemy import select

from app.audit.service import record_command
from app.core.secret_key import load_pepper
from app.core.security import hash_secret, is_open, parse_secret
from app.db.session import Database
from app.db.tables import ApiKey
from app.keys import links
from app.keys.service import DEFAULT_TENANT, add_key, ensure_tenant
from app.settings import Settings
from nupes_client.schemas.audit import AuditAction

KEY_NAME = "nupes up"
SCOPES = ("admin",)


def usable(database: Database, settings: Settings, secret: str | None) -> bool:
    """Whether this secret opens the service as it is now."""
    if not secret:
        return False
    hashed = hash_secret(secret, load_pepper(settings))
    with database.read() as session:
        key = session.scalars(select(ApiKey).where(ApiKey.secret_hash == hashed)).one_or_none()
    return key is not None and is_open(key)


def make_key(database: Database, settings: Settings) -> str:
    """Make an all-powerful key of the default tenant (made when missing) and return its secret."""
    pepper = load_pepper(settings)
    with database.write() as session:
        tenant = ensure_tenant(session, DEFAULT_TENANT)
        key, secret = add_key(session, pepper, tenant.id, KEY_NAME, SCOPES)
        record_command(session, tenant.id, AuditAction.KEY_CREATED, key.id)
        return secret


def make_login_link(database: Database, settings: Settings, secret: str) -> str:
    """Make a link that signs a browser in once with the key that has this secret; return its path."""
    pepper = load_pepper(settings)
    with database.write() as session:
        key = session.get_one(ApiKey, parse_secret(secret))
        link, path = links.make(session, pepper, key, hash_secret(secret, pepper))
        record_command(session, key.tenant_id, AuditAction.LOGIN_LINK_CREATED, link.id)
        return path
