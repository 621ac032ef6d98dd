"""Queued jobs that no live worker can take: `auto` jobs go to another class where that helps, others say so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, false, or_, select
from sqlalchemy.orm import Session

from app.db.session import Database
from app.db.tables import Job
from app.jobs.transitions import StaleFenceError, enqueue, record
from app.workers.capacity import Capacity, choose_class
from nupes_client.schemas.jobs import JobStatus, Waiting, WaitingReason

BATCH = 100


def route(database: Database) -> list[str]:
    """Bring the queue in line with the workers that live now; return the ids of the jobs that changed."""
    with database.read() as session:
        capacity = Capacity.of(session)
        found = _misplaced(session, capacity)
    return [job_id for job_id in found if _place(database, capacity, job_id)]


def waiting_for(job: Job, capacity: Capacity) -> Waiting | None:
    """Return what a queued job waits for; None when a live worker of its class has the memory."""
    if capacity.fits(job.device_class, job.memory_bytes):
        return None
    lives = job.device_class in capacity.largest
    return Waiting(
        reason=WaitingReason.MEMORY if lives else WaitingReason.NO_WORKER,
        device_class=job.device_class,
        needed_bytes=job.memory_bytes,
        largest_bytes=capacity.largest.get(job.device_class),
    )


def _misplaced(session: Session, capacity: Capacity) -> Sequence[str]:
    """Queued jobs that fit nowhere in their class and do not say so yet, or say so and fit by now."""
    stuck, silent = _stuck(capacity), Job.waiting_reason.is_(None)
    changed = or_(stuck & silent, ~stuck & ~silent)
    statement = select(Job.id).where(Job.status == JobStatus.QUEUED.value, changed).order_by(Job.id).limit(BATCH)
    return session.scalars(statement).all()


def _stuck(capacity: Capacity) -> ColumnElement[bool]:
    known = {name: largest for name, largest in capacity.largest.items() if largest is not None}
    small = [(Job.device_class == name) & (Job.memory_bytes > largest) for name, largest in known.items()]
    too_large = or_(false(), *small)
    # A NULL comparison is no truth value that can be negated: jobs without a plan fit wherever there is a worker.
    return Job.device_class.not_in(capacity.largest) | (Job.memory_bytes.is_not(None) & too_large)


def _place(database: Database, capacity: Capacity, job_id: str) -> bool:
    try:
        with database.write() as session:
            job = session.get(Job, job_id, with_for_update=True)
            return job is not None and job.status == JobStatus.QUEUED and _settle(session, job, capacity)
    except StaleFenceError:  # somebody took it meanwhile
        return False


def _settle(session: Session, job: Job, capacity: Capacity) -> bool:
    """Move the job if that helps, and say what it waits for or that it waits no more."""
    fitting = capacity.fitting(job.memory_bytes) if job.device == "auto" else ()
    before, to = job.device_class, choose_class("auto", fitting, learns=learns(job)) if fitting else job.device_class
    if to != before:
        record(session, job, "routed", {"from": before, "to": to}, device_class=to, **_columns(None))
        enqueue(session, job)
        return True
    waiting = waiting_for(job, capacity)
    if (waiting.reason.value if waiting else None) == job.waiting_reason:
        return False
    record(session, job, "waiting", {"for": waiting.model_dump(mode="json") if waiting else None}, **_columns(waiting))
    return True


def learns(job: Job) -> bool:
    """Whether a job learns on data."""
    return bool(job.config["optimize"]["mode"] == "data_driven")


def _columns(waiting: Waiting | None) -> dict[str, Any]:
    if waiting is None:
        return {"waiting_reason": None, "waiting_largest_bytes": None}
    return {"waiting_reason": waiting.reason.value, "waiting_largest_bytes": waiting.largest_bytes}
