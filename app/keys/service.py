"""Making, rotating and revoking keys."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from app.audit import service as audit
from app.core.clock import now
from app.core.ids import new_id
from app.core.problems import ConflictError, ForbiddenError, NotFoundError, ValidationProblem
from app.core.security import PREFIX_LENGTH, Principal, hash_secret, is_open, make_secret
from app.db.tables import ApiKey, Tenant
from app.keys import links, repository
from nupes_client.schemas.audit import AuditAction
from nupes_client.schemas.keys import Key, KeyCreate, KeyCreated, KeyRotate, LoginLink

DEFAULT_TENANT = "default"


def create(session: Session, pepper: bytes, who: Principal, body: KeyCreate) -> KeyCreated:
    """Make a key of the caller's tenant; nobody can give away more than they have.

    Raises:
        ForbiddenError: a scope that the caller's own key lacks.
        ValidationProblem: it would have expired already.
    """
    _check_scopes(who, body.scopes)
    if body.expires_at is not None and body.expires_at <= now():
        raise ValidationProblem(
            f"{body.expires_at:%Y-%m-%dT%H:%M:%SZ} has passed: the key would never open anything",
            code="expires_in_the_past",
            pointer="/expires_at",
            hint="Name a later time, or leave it out for a key that does not expire.",
        )
    row, secret = add_key(session, pepper, who.tenant_id, body.name, body.scopes, body.expires_at)
    audit.record(session, who, AuditAction.KEY_CREATED, row.id)
    return _with_secret(row, secret)


def login_link(session: Session, pepper: bytes, who: Principal, secret: str) -> LoginLink:
    """Make a link to a session of the caller's own key."""
    key = get(session, who.tenant_id, who.key_id)
    link, path = links.make(session, pepper, key, hash_secret(secret, pepper))
    audit.record(session, who, AuditAction.LOGIN_LINK_CREATED, link.id)
    return LoginLink(id=link.id, path=path, expires_at=link.expires_at)


def add_key(
    session: Session,
    pepper: bytes,
    tenant_id: str,
    name: str,
    scopes: Iterable[str],
    expires_at: datetime | None = None,
) -> tuple[ApiKey, str]:
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
        expires_at=expires_at,
    )
    session.add(row)
    session.flush()
    return row, secret


def rotate(session: Session, pepper: bytes, who: Principal, key_id: str, body: KeyRotate) -> KeyCreated:
    """Give a key a new secret; the present one stays valid for the overlap, one before it ends now.

    Raises:
        NotFoundError: no such key in this tenant.
        ForbiddenError: the key can do what the caller's can not: its secret would be more than the caller has.
        ConflictError: the key is revoked or expired.
    """
    key = _found(repository.get(session, who.tenant_id, key_id, lock=True), key_id)
    _check_scopes(who, key.scopes)
    if not is_open(key):
        raise ConflictError(
            "key_closed", f"the key {key_id!r} is revoked or expired", hint="Make a new key instead: POST /v1/keys."
        )
    secret, moment = make_secret(key.id), now()
    key.previous_hash, key.previous_until = key.secret_hash, moment + timedelta(seconds=body.overlap_s)
    key.secret_hash, key.rotated_at = hash_secret(secret, pepper), moment
    audit.record(session, who, AuditAction.KEY_ROTATED, key.id)
    return _with_secret(key, secret)


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
    return _found(repository.get(session, tenant_id, key_id), key_id)


def revoke(session: Session, who: Principal, key_id: str) -> None:
    """Make a key useless from now on; revoking twice changes nothing.

    Raises:
        NotFoundError: no such key in this tenant.
        ConflictError: no other key of the tenant could manage keys: it would be locked out.
    """
    key = _found(repository.get(session, who.tenant_id, key_id), key_id)
    if key.revoked_at is not None:
        return
    if _manages(key) and not any(_manages(other) for other in _others(session, key)):
        raise ConflictError(
            "last_managing_key",
            f"{key_id!r} is the last key of this tenant that can manage keys; nobody could make another",
            hint="Make another key with the scope `keys:manage` first.",
        )
    key.revoked_at = now()
    audit.record(session, who, AuditAction.KEY_REVOKED, key.id)


def _others(session: Session, key: ApiKey) -> list[ApiKey]:
    """The other keys of the tenant, locked in order, so that two requests can not each leave the other's key."""
    return [other for other in repository.lock_all(session, key.tenant_id) if other.id != key.id]


def _manages(key: ApiKey) -> bool:
    return is_open(key) and not {"keys:manage", "admin"}.isdisjoint(key.scopes)


def _check_scopes(who: Principal, scopes: Iterable[str]) -> None:
    for scope in scopes:
        if not who.may(scope):
            raise ForbiddenError(scope)


def _found(key: ApiKey | None, key_id: str) -> ApiKey:
    if key is None:
        raise NotFoundError("key", key_id)
    return key


def _with_secret(row: ApiKey, secret: str) -> KeyCreated:
    return KeyCreated(**view(row).model_dump(), secret=secret)


def view(row: ApiKey) -> Key:
    """The wire model of a row."""
    return Key.model_validate(row, from_attributes=True)
