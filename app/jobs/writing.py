"""Writing new jobs: each whole or not at all, and those that were checked meanwhile in one transaction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from app.audit import service as audit
from app.core.gathering import Gatherer
from app.core.security import Principal
from app.db.session import Database
from app.db.tables import Job
from app.jobs import cache, shards, transitions
from app.jobs.idempotency import Once
from app.settings import Settings
from app.usage import service as usage
from nupes_client.schemas.audit import AuditAction
from nupes_core.plan import ShardPlan

TOGETHER = usage.NARROW // 3
"""The most jobs of a transaction; with several API processes some of these may be under way at once."""


@dataclass(frozen=True)
class NewJob:
    """A job that passed all checks.

    Attributes:
        job: the row.
        shards: files that several workers can do at once.
        who: asked for it.
        once: writes the `Idempotency-Key`.
        cached: there was an answer in the cache when it was checked.
    """

    job: Job
    shards: Sequence[ShardPlan]
    who: Principal
    once: Once
    cached: bool


class JobWriter:
    """The one of a process."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings
        self._new = Gatherer(self._write, "job-writer", batch=TOGETHER, repeatable=False)

    def write(self, new: NewJob) -> None:
        """Write a job, and its end where the cache has the answer. Returns once that is committed.

        What stands against one of the jobs that are written together keeps the others from nothing: then each is
        written by itself.

        Raises:
            AnsweredError: an equal request has made a job already.
            ProblemError: the tenant has as many jobs as it may, or the key was used otherwise.
            IntegrityError: the model is gone.
        """
        self._new.ask_and_wait(new)

    def close(self) -> None:
        """End the thread."""
        self._new.close()

    def _write(self, news: Sequence[NewJob]) -> Sequence[None]:
        with self._database.write() as session:
            for new in sorted(news, key=lambda new: new.once.order):
                new.once.take(session, new.job.id)
            for tenant_id, count in sorted(Counter(new.job.tenant_id for new in news).items()):
                usage.check_new_jobs(session, self._settings, tenant_id, count)
            waiting = [new for new in news if not self._answered(session, new)]
            transitions.create(session, *(new.job for new in waiting))
            for new in waiting:
                shards.add(session, new.job, new.shards)
            for new in news:
                audit.record(session, new.who, AuditAction.JOB_CREATED, new.job.id)
        return [None] * len(news)

    def _answered(self, session: Session, new: NewJob) -> bool:
        """Answer a job from the cache, where the answer is still there: looked for again, now that it can be held."""
        answer = cache.find(session, new.job, lock=True) if new.cached else None
        if answer is None:
            return False
        pushes = bool(new.job.config.get("push_to_hub"))
        if pushes:
            new.job.memory_bytes = None  # moving files takes none worth planning
        transitions.create(session, new.job, wake=pushes)
        cache.answer_from(session, new.job, answer)
        return True
