"""`Idempotency-Key`: a request that is sent twice is carried out once.

The key is written in the transaction that makes the job: both are there or neither is, whenever a process dies. Of
equal requests at the same moment one makes the job; the others wait for its commit, or find it, and are answered with
that job (docs/decisions/015).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.orm import Session

from app.core.canonical import content_hash
from app.core.clock import now
from app.core.problems import ConflictError, ValidationProblem
from app.db.tables import IdempotencyKey
from app.jobs import repository

KEPT_S = 24 * 3600

_KEY = re.compile(r"[\x21-\x7e]([\x20-\x7e]{0,253}[\x21-\x7e])?")


class AnsweredError(Exception):
    """An equal request under the same key has led to something already."""

    def __init__(self, resource_id: str) -> None:
        super().__init__(resource_id)
        self.resource_id = resource_id


class Once:
    """One request under its key; without a key every request is a new one."""

    def __init__(self, tenant_id: str, key: str | None, request: Callable[[], dict[str, Any]]) -> None:
        """Prepare for one request.

        Args:
            tenant_id: whose key.
            key: None for none.
            request: tells what is asked for, in JSON; equal requests tell the same.

        Raises:
            ValidationProblem: the key is not 1 to 255 printable ASCII characters.
        """
        self._tenant_id = tenant_id
        self._key = key
        if key is not None:
            _check(key)
        self._request_hash = "" if key is None else content_hash(request())

    @property
    def order(self) -> tuple[str, str]:
        """Keys are taken in this order: two transactions that take several never wait for each other."""
        return self._tenant_id, self._key or ""

    def look(self, session: Session) -> None:
        """Find out before the work whether it has been done.

        Raises:
            AnsweredError: it has.
            ValidationProblem: the key was used for another request.
        """
        if self._key is not None:
            self._compare(session, self._key)

    def take(self, session: Session, resource_id: str) -> None:
        """Write what the request leads to, first in the transaction that makes it; raises as `look` does."""
        if self._key is None:
            return
        row = IdempotencyKey(
            tenant_id=self._tenant_id,
            key=self._key,
            request_hash=self._request_hash,
            resource_id=resource_id,
            created_at=now(),
        )
        if not repository.take_idempotency_key(session, row, since=_oldest()):
            self._compare(session, self._key)
            raise _in_flight(self._key)

    def _compare(self, session: Session, key: str) -> None:
        known = repository.idempotency_key(session, self._tenant_id, key, since=_oldest())
        if known is None or known.resource_id is None:  # the latter: left by a former version that died in between
            return
        if known.request_hash != self._request_hash:
            raise ValidationProblem(
                f"the Idempotency-Key {key!r} was used for a request with another body",
                code="idempotency_key_reused",
                pointer="/header/Idempotency-Key",
                hint="Use a new key for a new request.",
            )
        raise AnsweredError(known.resource_id)


def purge(session: Session) -> None:
    """Forget the keys of all tenants that are past their time."""
    repository.purge_idempotency_keys(session, _oldest())


def _oldest() -> datetime:
    return now() - timedelta(seconds=KEPT_S)


def _check(key: str) -> None:
    if not _KEY.fullmatch(key):
        raise ValidationProblem(
            f"the Idempotency-Key {key[:64]!r} is not 1 to 255 printable ASCII characters",
            code="invalid_idempotency_key",
            pointer="/header/Idempotency-Key",
            hint="A UUID is a good key.",
        )


def _in_flight(key: str) -> ConflictError:
    return ConflictError(
        "idempotency_key_in_use",
        f"a request with the Idempotency-Key {key!r} is being carried out",
        hint="Send it again in a moment; the answer will be the same job.",
        retryable=True,
    )
