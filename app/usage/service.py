"""What a tenant may use, what it uses, and the refusal of what would be too much."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from app.core.clock import now
from app.core.problems import TooManyRequestsError
from app.core.quotas import quotas_of
from app.core.ratelimit import Rate
from app.settings import Settings
from app.usage import repository
from app.usage.ledger import UsageKind
from nupes_client.schemas.usage import Meter, Quotas, Usage

NARROW = 50
"""With fewer jobs left than this, submissions of a tenant wait for each other, so that a limit is kept exactly."""
ACTIVE_RETRY_S = 10


def quotas(session: Session, settings: Settings, tenant_id: str) -> Quotas:
    """The limits of a tenant."""
    return quotas_of(settings, repository.tenant(session, tenant_id).quotas)


class NarrowError(Exception):
    """So little is left that new jobs have to be counted one by one."""


def check_new_jobs(session: Session, settings: Settings, tenant_id: str, count: int = 1) -> None:
    """Refuse a job too many, in the transaction that would make it.

    Raises:
        TooManyRequestsError: `quota_active_jobs` or `quota_jobs_per_day`.
        NarrowError: of several jobs some might be too many.
    """
    limits = quotas(session, settings, tenant_id)
    if _room(session, tenant_id, limits) - (count - 1) >= NARROW:
        return
    if count > 1:
        raise NarrowError
    repository.tenant(session, tenant_id, lock=True)
    _refuse(session, tenant_id, limits)


def _room(session: Session, tenant_id: str, limits: Quotas) -> float:
    unlimited = float("inf")
    active = (
        unlimited if limits.active_jobs is None else limits.active_jobs - repository.active_jobs(session, tenant_id)
    )
    today = unlimited if limits.jobs_per_day is None else limits.jobs_per_day - _jobs_today(session, tenant_id)
    return min(active, today)


def _refuse(session: Session, tenant_id: str, limits: Quotas) -> None:
    if limits.active_jobs is not None and repository.active_jobs(session, tenant_id) >= limits.active_jobs:
        raise TooManyRequestsError(
            "quota_active_jobs",
            f"{limits.active_jobs} jobs wait or run, which is all this tenant may have at once",
            retry_after_s=ACTIVE_RETRY_S,
            hint="Wait until a job ends, or cancel one.",
        )
    if limits.jobs_per_day is not None and _jobs_today(session, tenant_id) >= limits.jobs_per_day:
        raise TooManyRequestsError(
            "quota_jobs_per_day",
            f"{limits.jobs_per_day} jobs were submitted today, which is all this tenant may submit in a day",
            retry_after_s=int((_tomorrow() - now()).total_seconds()) + 1,
            hint="Submit it tomorrow (UTC), or ask the operator of the service for more.",
        )


def usage(session: Session, settings: Settings, tenant_id: str, rate: Rate | None) -> Usage:
    """What the tenant uses of what it may; `rate` is that of the key that asks."""
    limits = quotas(session, settings, tenant_id)
    stored = repository.stored_bytes(session, tenant_id)
    reset = now() + timedelta(seconds=rate.reset_s) if rate else None
    return Usage(
        active_jobs=Meter(used=repository.active_jobs(session, tenant_id), limit=limits.active_jobs),
        jobs_per_day=Meter(used=_jobs_today(session, tenant_id), limit=limits.jobs_per_day, resets_at=_tomorrow()),
        stored_bytes=Meter(used=stored, limit=limits.stored_bytes),
        requests_per_minute=Meter(
            used=rate.limit - rate.remaining if rate else 0, limit=limits.requests_per_minute, resets_at=reset
        ),
        compute_seconds_this_month=repository.total(session, tenant_id, UsageKind.COMPUTE, _today().replace(day=1)),
    )


def _jobs_today(session: Session, tenant_id: str) -> int:
    return int(repository.total(session, tenant_id, UsageKind.JOB, _today()))


def _today() -> datetime:
    return now().replace(hour=0, minute=0, second=0, microsecond=0)


def _tomorrow() -> datetime:
    return _today() + timedelta(days=1)
