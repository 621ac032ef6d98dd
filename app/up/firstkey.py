"""The tenant and the API key of a new data folder."""

from __future__ import annotations

from sqlalchemy import select

from app.core.ids import new_id
from app.core.security import PREFIX_LENGTH, hash_secret, load_pepper, make_secret
from app.db.session import Database
from app.db.tables import ApiKey, Tenant
from app.settings import Settings

TENANT = "default"
KEY_NAME = "nupes up"
SCOPES = ["admin"]


def usable(database: Database, settings: Settings, secret: str | None) -> bool:
    """Whether this secret opens the service as it is now."""
    if not secret:
        return False
    hashed = hash_secret(secret, load_pepper(settings))
    with database.read() as session:
        key = session.scalars(select(ApiKey).where(ApiKey.secret_hash == hashed)).one_or_none()
    return key is not None and key.revoked_at is None


def make_key(database: Database, settings: Settings) -> str:
    """Make an all-powerful key of the default tenant (made when missing) and return its secret."""
    key_id = new_id("key")
    secret = make_secret(key_id)
    with database.write() as session:
        tenant = session.scalars(select(Tenant).where(Tenant.name == TENANT)).one_or_none()
        if tenant is None:
            tenant = Tenant(id=new_id("ten"), name=TENANT)
            session.add(tenant)
            session.flush()
        session.add(
            ApiKey(
                id=key_id,
                tenant_id=tenant.id,
                name=KEY_NAME,
                prefix=secret[:PREFIX_LENGTH],
                secret_hash=hash_secret(secret, load_pepper(settings)),
                scopes=SCOPES,
            )
        )
    return secret
