"""`Idempotency-Key`: a request that is sent twice is carried out once.

The key is reserved in a transaction of its own, before the work; the work's transaction notes what it led to. A second
request in between is told to come back (409). A reservation whose process died is taken over after a minute.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.core.clock import now
from app.core.problems import ConflictError, ValidationProblem
from app.db.session import Database
from app.db.tables import IdempotencyKey
from app.jobs import repository

RESERVED_S = 60
KEPT_S = 24 * 3600

_KEY = re.compile(r"[\x21-\x7e]([\x20-\x7e]{0,253}[\x21-\x7e])?")


class Once:
    """One request under its key: either it is a repetition, or the key is reserved for it."""

    def __init__(self, reserved: IdempotencyKey | None, resource_id: str | None) -> None:
        self.resource_id = resource_id
        """What an earlier, equal request led to."""
        self._reserved = reserved

    def answer(self, session: Session, resource_id: str) -> None:
        """Note the outcome, in the transaction that makes it."""
        if self._reserved and not repository.answer_idempotency_key(session, self._reserved, resource_id):
            raise _in_flight(self._reserved.key)


@contextmanager
def once(database: Database, tenant_id: str, key: str | None, request_hash: str) -> Iterator[Once]:
    """Reserve `key` for the duration; give it free when the work fails. Without a key every request is a new one.

    Raises:
        ConflictError: an equal request is being carried out.
        ValidationProblem: the key was used for another request, or is not 1 to 255 printable ASCII characters.
    """
    if key is None:
        yield Once(None, None)
        return
    _check(key)
    row = IdempotencyKey(tenant_id=tenant_id, key=key, request_hash=request_hash, created_at=now())
    resource_id = _reserve(database, row)
    if resource_id is not None:
        yield Once(None, resource_id)
        return
    try:
        yield Once(row, None)
    except BaseException:
        with database.write() as session:
            repository.release_idempotency_key(session, row)
        raise


def _check(key: str) -> None:
    if not _KEY.fullmatch(key):
        raise ValidationProblem(
            f"the Idempotency-Key {key[:64]!r} is not 1 to 255 printable ASCII characters",
            code="invalid_idempotency_key",
            pointer="/header/Idempotency-Key",
            hint="A UUID is a good key.",
        )


def _reserve(database: Database, row: IdempotencyKey) -> str | None:
    """Return what the key led to before; None when it is reserved now."""
    try:
        with database.write() as session:
            repository.purge_idempotency_keys(session, row.tenant_id, row.created_at - timedelta(seconds=KEPT_S))
            known = repository.idempotency_key(session, row.tenant_id, row.key)
            if known is None:
                repository.add_idempotency_key(session, row)
                return None
            return _repeat(known, row)
    except IntegrityError as error:  # another request reserved it between our look and our insert
        raise _in_flight(row.key) from error


def _repeat(known: IdempotencyKey, row: IdempotencyKey) -> str | None:
    if known.request_hash != row.request_hash:
        raise ValidationProblem(
            f"the Idempotency-Key {known.key!r} was used for a request with another body",
            code="idempotency_key_reused",
            pointer="/header/Idempotency-Key",
            hint="Use a new key for a new request.",
        )
    if known.resource_id is None and known.created_at > row.created_at - timedelta(seconds=RESERVED_S):
        raise _in_flight(known.key)
    if known.resource_id is None:
        known.created_at = row.created_at  # take over: the former holder finds its reservation gone
    return known.resource_id


def _in_flight(key: str) -> ConflictError:
    return ConflictError(
        "idempotency_key_in_use",
        f"a request with the Idempotency-Key {key!r} is being carried out",
        hint="Send it again in a moment; the answer will be the same job.",
        retryable=True,
    )
