"""API keys: their form, their hash, and the `Annotated` authenticators that endpoints ask for.

A key is `nupes_<id>_<secret><checksum>`: `<id>` is the unique part of the row's id (26 characters), `<secret>` 32
random characters, `<checksum>` 6 characters of CRC-32 that tell a mistyped key from an unknown one, database unasked.
The database holds an HMAC-SHA-256 under a pepper that never leaves the service, so a stolen table opens nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import string
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import structlog
from fastapi import Depends, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy import update
from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import Request

from app.core.clock import now
from app.core.problems import ForbiddenError, UnauthorizedError
from app.db.session import Database
from app.db.tables import ApiKey
from app.settings import Settings

_ALPHABET = string.digits + string.ascii_letters
_SECRET_LENGTH = 32
_CHECKSUM_LENGTH = 6
_KEY = re.compile(r"nupes_([0-9a-z]{26})_([0-9A-Za-z]{32})([0-9A-Za-z]{6})")
PREFIX_LENGTH = 24
_TOUCH_EVERY = timedelta(seconds=60)

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Principal:
    """Who is asking."""

    tenant_id: str
    key_id: str
    scopes: frozenset[str]

    def may(self, scope: str) -> bool:
        """Whether the key grants `scope`; `admin` grants all."""
        return scope in self.scopes or "admin" in self.scopes


def make_secret(key_id: str) -> str:
    """Return a new secret for the key row `key_id`."""
    body = f"nupes_{key_id.removeprefix('key_')}_" + "".join(secrets.choice(_ALPHABET) for _ in range(_SECRET_LENGTH))
    return body + _checksum(body)


def parse_secret(secret: str) -> str:
    """Return the id of the row that a secret belongs to.

    Raises:
        UnauthorizedError: not the form of a key, or mistyped.
    """
    match = _KEY.fullmatch(secret)
    if not match:
        raise UnauthorizedError("this is no NUPES API key: it does not look like `nupes_…`")
    if not hmac.compare_digest(_checksum(secret[:-_CHECKSUM_LENGTH]), match[3]):
        raise UnauthorizedError("this API key was mistyped or cut: its checksum does not fit")
    return f"key_{match[1]}"


def hash_secret(secret: str, pepper: bytes) -> str:
    """The HMAC-SHA-256 that the database keeps, 64 hex digits."""
    return hmac.new(pepper, secret.encode(), hashlib.sha256).hexdigest()


def _checksum(body: str) -> str:
    value = zlib.crc32(body.encode())
    digits = []
    for _ in range(_CHECKSUM_LENGTH):
        value, digit = divmod(value, len(_ALPHABET))
        digits.append(_ALPHABET[digit])
    return "".join(digits)


def load_pepper(settings: Settings) -> bytes:
    """The secret under which keys are hashed: `NUPES_SECRET_KEY`, else a file in the data folder, made on first use."""
    if settings.secret_key is not None:
        return settings.secret_key.get_secret_value().encode()
    path = settings.data_dir / "secret.key"
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    _create_private(path, secrets.token_hex(32))
    return path.read_bytes()


def _create_private(path: Path, content: str) -> None:
    """Write a file that only its owner reads, unless it is there; never visible half-written."""
    if path.exists():
        return
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(content)
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass  # another process was faster; its key counts
    finally:
        temporary.unlink()


_bearer = HTTPBearer(auto_error=False, description="An API key, `nupes_…`.", scheme_name="ApiKey")


def _authenticate(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]
) -> Principal:
    if credentials is None:
        raise UnauthorizedError("no API key was sent")
    database: Database = request.app.state.database
    key = _find(database, credentials.credentials, request.app.state.pepper)
    _touch(database, key)
    principal = Principal(key.tenant_id, key.id, frozenset(key.scopes))
    request.state.principal = principal
    return principal


def _find(database: Database, secret: str, pepper: bytes) -> ApiKey:
    key_id = parse_secret(secret)
    with database.read() as session:
        key = session.get(ApiKey, key_id)
    expected = key.secret_hash if key else "0" * 64
    genuine = hmac.compare_digest(expected, hash_secret(secret, pepper))
    if key is None or not genuine or key.revoked_at is not None:
        raise UnauthorizedError("this API key is unknown or was revoked")
    return key


def _touch(database: Database, key: ApiKey) -> None:
    """Note the use, at most once a minute: it tells an operator which keys are dead."""
    moment = now()
    if key.last_used_at is not None and moment - key.last_used_at < _TOUCH_EVERY:
        return
    try:
        with database.write() as session:
            session.execute(update(ApiKey).where(ApiKey.id == key.id).values(last_used_at=moment))
    except SQLAlchemyError as error:
        log.warning("could not note the use of a key", key_id=key.id, error=str(error))


Authenticated = Annotated[Principal, Depends(_authenticate)]


def _require(scope: str) -> Callable[[Principal], Principal]:
    def check(principal: Authenticated) -> Principal:
        if not principal.may(scope):
            raise ForbiddenError(scope)
        return principal

    return check


JobsRead = Annotated[Principal, Depends(_require("jobs:read"))]
JobsWrite = Annotated[Principal, Depends(_require("jobs:write"))]
ModelsRead = Annotated[Principal, Depends(_require("models:read"))]
ModelsWrite = Annotated[Principal, Depends(_require("models:write"))]
ArtifactsRead = Annotated[Principal, Depends(_require("artifacts:read"))]
KeysManage = Annotated[Principal, Depends(_require("keys:manage"))]
