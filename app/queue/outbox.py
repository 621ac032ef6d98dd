"""Wake-ups that the broker has not got yet. Written with the job, deleted once published."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import timedelta
from typing import NamedTuple

from sqlalchemy import bindparam, delete, select
from sqlalchemy.orm import Session

from app.core.clock import now
from app.core.gathering import Gatherer
from app.db.session import Database
from app.db.tables import Job, JobShard, OutboxMessage
from app.queue.publisher import BrokerUnavailableError, Publisher
from app.settings import Settings
from nupes_client.schemas.jobs import JobStatus, ShardStatus

logger = logging.getLogger(__name__)

SETTLE_S = 2.0
"""Younger rows are left to the request that wrote them."""

BATCH = 100


class Message(NamedTuple):
    """A row of the outbox."""

    id: int
    job_id: str
    queue: str


_MESSAGES = select(OutboxMessage.id, OutboxMessage.job_id, OutboxMessage.queue)
_OF_JOBS = _MESSAGES.where(OutboxMessage.job_id.in_(bindparam("job_ids", expanding=True))).order_by(OutboxMessage.id)
_DELETE = delete(OutboxMessage).where(OutboxMessage.id.in_(bindparam("ids", expanding=True)))


class WakeUps:
    """Publishes the wake-ups of an API process: those of jobs queued meanwhile together, over one connection."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._publisher = Publisher(settings)
        self._jobs = Gatherer(self._deliver, "wake-ups")

    async def deliver(self, job_id: str) -> None:
        """Publish those of one job right after the transaction that queued it; see `deliver`."""
        await self._jobs.ask(job_id)

    def close(self) -> None:
        """End the thread and the connection."""
        self._jobs.close()
        self._publisher.close()

    def _deliver(self, job_ids: Sequence[str]) -> list[bool]:
        return [_deliver(self._database, self._publisher, job_ids)] * len(job_ids)


def deliver(database: Database, settings: Settings, job_id: str) -> bool:
    """Publish the wake-ups of one job right after the transaction that queued it.

    Returns False when the broker is down: the rows stay for the sweeper, and workers look at the table anyway.
    """
    with Publisher(settings) as publisher:
        return _deliver(database, publisher, [job_id])


def _deliver(database: Database, publisher: Publisher, job_ids: Sequence[str]) -> bool:
    with database.glance() as session:
        found = session.execute(_OF_JOBS, {"job_ids": list(job_ids)})
        messages = [Message(*row) for row in found]
    return _publish(database, publisher, messages)


def sweep(database: Database, settings: Settings) -> bool:
    """Publish wake-ups that were left behind, oldest first; drop those of jobs that wait no longer.

    Any number of processes may sweep at once: a wake-up published twice does no harm. Returns False when the broker is
    down.
    """
    with database.read() as session:
        if not (messages := _left_behind(session)):
            return True
        waiting = _still_queued(session, messages)
    obsolete = [message.id for message in messages if message.job_id not in waiting]
    _delete(database, obsolete)
    with Publisher(settings) as publisher:
        return _publish(database, publisher, [message for message in messages if message.job_id in waiting])


def _left_behind(session: Session) -> list[Message]:
    limit = now() - timedelta(seconds=SETTLE_S)
    statement = _MESSAGES.where(OutboxMessage.created_at < limit).order_by(OutboxMessage.id).limit(BATCH)
    return [Message(*row) for row in session.execute(statement)]


def _still_queued(session: Session, messages: list[Message]) -> set[str]:
    """Jobs that wait, and jobs of which a file waits."""
    ids = {message.job_id for message in messages}
    waiting = select(Job.id).where(Job.id.in_(ids), Job.status == JobStatus.QUEUED.value)
    shared = select(JobShard.job_id).where(JobShard.job_id.in_(ids), JobShard.status == ShardStatus.QUEUED.value)
    return {*session.scalars(waiting), *session.scalars(shared)}


def _publish(database: Database, publisher: Publisher, messages: list[Message]) -> bool:
    published = []
    try:
        for message in messages:
            publisher.publish(message.job_id, message.queue)
            published.append(message.id)
    except BrokerUnavailableError as error:
        logger.warning("broker down, %d wake-ups wait: %s", len(messages) - len(published), error)
    _delete(database, published)
    return len(published) == len(messages)


def _delete(database: Database, ids: list[int]) -> None:
    if ids:
        with database.write() as session:
            session.connection().execute(_DELETE, {"ids": ids})
