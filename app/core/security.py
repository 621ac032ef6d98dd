"""API keys: their form, their hash, and the `Annotated` authenticators that endpoints ask for.

A key is `nupes_<id>_<secret><checksum>`: `<id>` is the unique part of the row's id (26 characters), `<secret>` 32
random characters, `<checksum>` 6 characters of CRC-32 that tell a mistyped key from an unknown one, database unasked.
The database holds an HMAC-SHA-256 under a pepper that never leaves the service, so a stolen table opens nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import string
import zlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any

import structlog
from fastapi import Depends, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy import bindparam, select, update
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from app.core import sessions
from app.core.clock import now
from app.core.gathering import Gatherer
from app.core.problems import ForbiddenError, ProblemError, UnauthorizedError
from app.core.quotas import quotas_of
from app.core.ratelimit import RateGuard
from app.db.session import Database
from app.db.tables import ApiKey, Tenant
from nupes_client.schemas.usage import Quotas

_ALPHABET = string.digits + string.ascii_letters
_SECRET_LENGTH = 32
_CHECKSUM_LENGTH = 6
_KEY = re.compile(r"nupes_([0-9a-z]{26})_([0-9A-Za-z]{32})([0-9A-Za-z]{6})")
PREFIX_LENGTH = 24
_NO_HASH = "0" * 64
_ADDRESS_LENGTH = 64
_KEYS = (
    select(ApiKey, Tenant.quotas)
    .join(Tenant, Tenant.id == ApiKey.tenant_id)
    .where(ApiKey.id.in_(bindparam("key_ids", expanding=True)))
)
_TOUCH_EVERY = timedelta(seconds=60)

KeyAndQuotas = tuple[ApiKey, Mapping[str, Any] | None]
KeyReader = Gatherer[str, KeyAndQuotas | None]

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Principal:
    """Who is asking, from where, in which request."""

    tenant_id: str
    key_id: str
    scopes: frozenset[str]
    address: str | None = None
    request_id: str | None = None

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


_bearer = HTTPBearer(auto_error=False, description="An API key, `nupes_…`.", scheme_name="ApiKey")


async def _authenticate(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]
) -> Principal:
    if credentials is None and sessions.COOKIE not in request.cookies:
        raise UnauthorizedError("no API key was sent")
    guard: RateGuard = request.app.state.rate_guard
    try:
        secret = credentials.credentials if credentials else None
        key, quotas = await (_identify_session(request) if secret is None else _identify(request, secret))
    except UnauthorizedError:
        await run_in_threadpool(guard.count_failure, peer_address(request))
        raise
    rate = request.state.rate = await guard.count_request(key.id, quotas.requests_per_minute)
    if rate is not None and not rate.allowed:
        raise rate.refusal()
    if _is_first_use_in_a_while(key):
        await run_in_threadpool(_touch, request.app.state.database, key)
    principal = Principal(key.tenant_id, key.id, frozenset(key.scopes), peer_address(request), request.state.request_id)
    request.state.principal = principal
    return principal


def peer_address(request: Request) -> str | None:
    """Where the request comes from: the peer, or the client that a trusted proxy names (uvicorn looks after that)."""
    return request.client.host[:_ADDRESS_LENGTH] if request.client else None


def known_keys(database: Database) -> KeyReader:
    """Make what `app.state.keys` is: the reader of keys and of what differs in the quotas of their tenants."""

    def read(key_ids: Sequence[str]) -> list[KeyAndQuotas | None]:
        with database.glance() as session:
            rows = session.execute(_KEYS, {"key_ids": list(set(key_ids))})
            found = {row.ApiKey.id: (row.ApiKey, row.quotas) for row in rows}
        return [found.get(key_id) for key_id in key_ids]

    return Gatherer(read, "keys")


async def _identify(request: Request, secret: str) -> tuple[ApiKey, Quotas]:
    keys: KeyReader = request.app.state.keys
    row, overrides = await keys.ask(parse_secret(secret)) or (None, None)
    key = require_valid(row, hash_secret(secret, request.app.state.pepper))
    return key, quotas_of(request.app.state.settings, overrides)


async def open_session(request: Request, secret: str) -> sessions.SessionToken:
    """Exchange the secret of a key for the session of a browser.

    Raises:
        UnauthorizedError: it opens nothing.
        TooManyRequestsError: so did too many others from this address.
    """
    guard: RateGuard = request.app.state.rate_guard
    pepper: bytes = request.app.state.pepper
    try:
        key, _ = await _identify(request, secret)
    except UnauthorizedError:
        await run_in_threadpool(guard.count_failure, peer_address(request))
        raise
    return sessions.SessionToken.issue(key.id, hash_secret(secret, pepper), pepper)


async def _identify_session(request: Request) -> tuple[ApiKey, Quotas]:
    """The key behind the cookie of a browser; what changes something needs the token of the session too."""
    token, pepper = sessions.SessionToken.parse(request.cookies[sessions.COOKIE]), request.app.state.pepper
    keys: KeyReader = request.app.state.keys
    row, overrides = await keys.ask(token.key_id) or (None, None)
    hashes = (row.secret_hash, row.previous_hash) if row else ()
    issued_for = next((each for each in hashes if each and token.matches(each, pepper)), None)
    if issued_for is None:
        raise sessions.ended_session()
    key = require_valid(row, issued_for)
    sessions.check_csrf(request, token, pepper)
    request.state.csrf_token = token.csrf_token(pepper)
    return key, quotas_of(request.app.state.settings, overrides)


def require_valid(key: ApiKey | None, hashed: str) -> ApiKey:
    """Return the key when the secret with this hash is its own and it is valid.

    The same time is taken for each reason to refuse.

    Raises:
        UnauthorizedError: it is not.
    """
    current = hmac.compare_digest(key.secret_hash if key else _NO_HASH, hashed)
    previous = hmac.compare_digest((key.previous_hash if key else None) or _NO_HASH, hashed)
    if key is None or not (current or previous):
        raise UnauthorizedError("this API key is unknown")
    if not is_open(key):
        raise closed_key(key)
    if not current and not _overlaps(key):
        raise UnauthorizedError(
            "this secret was replaced by a newer one of the same key", code="key_rotated", hint="Use the newer secret."
        )
    return key


def is_open(key: ApiKey) -> bool:
    """Whether the key opens anything now: neither revoked nor past its time."""
    return key.revoked_at is None and (key.expires_at is None or key.expires_at > now())


def closed_key(key: ApiKey) -> UnauthorizedError:
    """The refusal of a genuine key whose time is over."""
    if key.revoked_at is not None:
        return UnauthorizedError("this API key was revoked", code="key_revoked", hint="Ask for a new key.")
    return UnauthorizedError(
        f"this API key expired at {key.expires_at:%Y-%m-%dT%H:%M:%SZ}",
        code="key_expired",
        hint="Ask for a new key, or make one with another key that has `keys:manage`.",
    )


def _overlaps(key: ApiKey) -> bool:
    return key.previous_until is not None and key.previous_until > now()


def _is_first_use_in_a_while(key: ApiKey) -> bool:
    return key.last_used_at is None or now() - key.last_used_at >= _TOUCH_EVERY


def _touch(database: Database, key: ApiKey) -> None:
    """Note the use, at most once a minute: it tells an operator which keys are dead."""
    try:
        with database.write() as session:
            session.execute(update(ApiKey).where(ApiKey.id == key.id).values(last_used_at=now()))
    except SQLAlchemyError as error:
        log.warning("could not note the use of a key", key_id=key.id, error=str(error))


Authenticated = Annotated[Principal, Depends(_authenticate)]


async def _presented_secret(
    _principal: Authenticated, credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]
) -> str:
    """The secret of the key that a request carries.

    Raises:
        ProblemError: 403, it carries the session of a browser instead, which must not make itself longer.
    """
    if credentials is None:
        raise ProblemError(
            403, "key_needed", "Forbidden", "the session of a browser can not do this", hint="Send the API key itself."
        )
    return credentials.credentials


PresentedSecret = Annotated[str, Depends(_presented_secret)]


def _require(scope: str) -> Callable[[Principal], Awaitable[Principal]]:
    async def check(principal: Authenticated) -> Principal:
        if not principal.may(scope):
            raise ForbiddenError(scope)
        return principal

    return check


JobsRead = Annotated[Principal, Depends(_require("jobs:read"))]
JobsWrite = Annotated[Principal, Depends(_require("jobs:write"))]
ModelsRead = Annotated[Principal, Depends(_require("models:read"))]
ModelsWrite = Annotated[Principal, Depends(_require("models:write"))]
ArtifactsRead = Annotated[Principal, Depends(_require("artifacts:read"))]
WebhooksManage = Annotated[Principal, Depends(_require("webhooks:manage"))]
SecretsManage = Annotated[Principal, Depends(_require("secrets:manage"))]
KeysManage = Annotated[Principal, Depends(_require("keys:manage"))]
Admin = Annotated[Principal, Depends(_require("admin"))]
