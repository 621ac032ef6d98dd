"""Making and revoking keys."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy.orm import Session

from app.core.clock import now
from app.core.ids import new_id
from app.core.problems import ConflictError, ForbiddenError, NotFoundError
from app.core.security import PREFIX_LENGTH, Principal, hash_secret, make_secret
from app.db.tables import ApiKey, Tenant
from app.keys import repository
from nupes_client.schemas.keys import Key, KeyCreate, KeyCreated

DEFAULT_TENANT = "default"


def create(session: Session, pepper: bytes, who: Principal, body: KeyCreate) -> KeyCreated:
    """Make a key of the caller's tenant; nobody can give away more than they have.

    Raises:
        ForbiddenError: a scope that the caller's own key lacks.
    """
    for scope in body.scopes:
        if not who.may(scope):
            raise ForbiddenError(scope)
    row, secret = add_key(session, pepper, who.tenant_id, body.name, body.scopes)
    return KeyCreated(**view(row).model_dump(), secret=secret)


def add_key(session: Session, pepper: bytes, tenant_id: str, name: str, scopes: Iterable[str]) -> tuple[ApiKey, str]:
    """Add a key; return its row and its secret, which is kept nowhere."""
    key_id = new_id("key")
    secret = make_secret(key_id)
    row = ApiKey(
        id=key_id,
        tenant_id=tenant_id,
        name=name,
        prefix=secret[:PREFIX_LENGTH],
        secret_hash=hash_secret(secret, pepper),
        scopes=sorted(set(scopes)),
    )
    session.add(row)
    session.flush()
    return row, secret


def ensure_tenant(session: Session, name: str) -> Tenant:
    """Return the tenant of that name, made when it is missing."""
    tenant = repository.tenant_named(session, name)
    if tenant is None:
        tenant = Tenant(name=name)
        session.add(tenant)
        session.flush()
    return tenant


def get(session: Session, tenant_id: str, key_id: str) -> ApiKey:
    """Return one key.

    Raises:
        NotFoundError: no such key in this tenant.
    """
    key = repository.get(session, tenant_id, key_id)
    if key is None:
        raise NotFoundError("key", key_id)
    return key


def revoke(session: Session, who: Principal, key_id: str) -> None:
    """Make a key useless from now on; revoking twice changes nothing.

    Raises:
        ConflictError: it is the key the request was made with, which would lock the caller out.
    """
    key = get(session, who.tenant_id, key_id)
    if key.id == who.key_id:
        raise ConflictError("own_key", "this is the key of the request itself", hint="Use another key to revoke it.")
    key.revoked_at = key.revoked_at or now()


def view(row: ApiKey) -> Key:
    """The wire model of a row."""
    return Key.model_validate(row, from_attributes=True)
