"""The API key of a data folder: the one clients on this machine have, or a new one."""

from __future__ import annotations

from sqlalchemy import select

from app.audit.service import record_command
from app.core.secret_key import load_pepper
from app.core.security import hash_secret, is_open
from app.db.session import Database
from app.db.tables import ApiKey
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
