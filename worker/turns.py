"""Whose turn it is: which waiting job a free worker should take, fair between tenants (docs/decisions/010).

Of each tenant that waits only its first job counts: highest priority, then oldest. Among these the most urgent wins,
and among equally urgent ones the tenant with the fewest running jobs, then the one that was served longest ago. A
tenant that nobody has served for `PATIENCE_S` goes before all others, whatever their priorities are.

The cost grows with the number of tenants that wait, not with the number of their jobs: an index holds the jobs of each
tenant together, and the query jumps from one tenant to the next.
"""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

from sqlalchemy import CTE, ColumnElement, Select, func, select
from sqlalchemy.orm import Session, aliased

from app.core.clock import now
from app.db.tables import Job, Tenant
from app.jobs.transitions import fits, rested
from nupes_client.schemas.jobs import JobStatus

PATIENCE_S = 600.0
"""No tenant with a waiting job is passed over for longer than this while others are served."""

CANDIDATES = 10
"""Looked at together: others may be faster with the first."""

_NEVER = datetime.min.replace(tzinfo=UTC)
_HELD = (JobStatus.RUNNING.value, JobStatus.CANCELLING.value)


def abandoned_jobs(session: Session, device_class: str, memory: int) -> list[str]:
    """Jobs with an attempt left whose worker does not renew its lease, most urgent first."""
    expired = (Job.status == JobStatus.RUNNING.value, Job.lease_until < now(), Job.attempt < Job.max_attempts)
    statement = select(Job.id).where(*expired, Job.device_class == device_class, fits(memory))
    return list(session.scalars(statement.order_by(Job.priority.desc(), Job.id).limit(CANDIDATES)))


def next_jobs(session: Session, device_class: str, memory: int) -> list[str]:
    """The first jobs of the tenants that wait, whose turn it is first."""
    first = session.execute(first_jobs(device_class, memory)).all()
    running = Counter(session.scalars(select(Job.tenant_id).where(Job.status.in_(_HELD))))
    limit = now() - timedelta(seconds=PATIENCE_S)
    turns = sorted(first, key=lambda row: _turn(row, running[row.tenant_id], limit))
    return [row.id for row in turns[:CANDIDATES]]


def _turn(row: Any, running: int, limit: datetime) -> tuple[object, ...]:
    """Sort key of a tenant's first job; before `limit` means that the tenant has waited too long."""
    served_at = row.last_claim_at or _NEVER
    patient = max(served_at, row.created_at) >= limit
    return patient, -row.priority, running, served_at, row.id


@lru_cache(maxsize=8)
def first_jobs(device_class: str, memory: int) -> Select[str, int, datetime, str, datetime | None]:
    """The query: the first job of each tenant that waits. Kept: putting it together costs more than running it."""
    tenants = _tenants(device_class, memory)
    return (
        select(Job.id, Job.priority, Job.created_at, Job.tenant_id, Tenant.last_claim_at)
        .select_from(tenants)
        .join(Job, Job.id == _first_job(tenants, device_class, memory))
        .join(Tenant, Tenant.id == Job.tenant_id)
    )


def _waiting(job: type[Job], device_class: str, memory: int) -> list[ColumnElement[bool]]:
    """What makes a job one that a worker of this class may take."""
    return [
        job.status == JobStatus.QUEUED.value,
        rested(job),
        job.device_class == device_class,
        job.attempt < job.max_attempts,
        fits(memory, job),
    ]


def _tenants(device_class: str, memory: int) -> CTE:
    """Tenants with a waiting job: the first, then again and again the one behind it; ends with a row of NULL."""
    job = aliased(Job)
    first = select(func.min(job.tenant_id).label("tenant_id")).where(*_waiting(job, device_class, memory))
    tenants = first.cte("waiting", recursive=True)
    behind = aliased(Job)
    later = select(func.min(behind.tenant_id)).where(
        *_waiting(behind, device_class, memory), behind.tenant_id > tenants.c.tenant_id
    )
    step = select(later.correlate(tenants).scalar_subquery()).where(tenants.c.tenant_id.is_not(None))
    return tenants.union_all(step)


def _first_job(tenants: CTE, device_class: str, memory: int) -> ColumnElement[str | None]:
    """Id of a tenant's first waiting job: of the highest priority the oldest. Two probes of the index."""
    urgent, oldest = aliased(Job), aliased(Job)
    mine = [*_waiting(urgent, device_class, memory), urgent.tenant_id == tenants.c.tenant_id]
    highest = select(func.max(urgent.priority)).where(*mine).correlate(tenants).scalar_subquery()
    same = (oldest.tenant_id == tenants.c.tenant_id, oldest.priority == highest)
    equals = [*_waiting(oldest, device_class, memory), *same]
    return select(func.min(oldest.id)).where(*equals).correlate(tenants).scalar_subquery()
