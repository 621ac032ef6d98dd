"""Wake-ups that the broker has not got yet. Written with the job, deleted once published."""

from __future__ import annotations

import logging
from datetime import timedelta

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from app.core.clock import now
from app.db.session import Database
from app.db.tables import Job, OutboxMessage
from app.queue.publisher import BrokerUnavailableError, publish_wake
from app.settings import Settings
from nupes_client.schemas.jobs import JobStatus

logger = logging.getLogger(__name__)

SETTLE_S = 2.0
"""Younger rows are left to the request that wrote them."""

BATCH = 100


def deliver(database: Database, settings: Settings, job_id: str) -> bool:
    """Publish the wake-ups of one job right after the transaction that queued it.

    Returns False when the broker is down: the rows stay for the sweeper, and workers look at the table anyway.
    """
    with database.read() as session:
        messages = list(session.scalars(select(OutboxMessage).where(OutboxMessage.job_id == job_id)))
    return _publish(database, settings, messages)


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
    return _publish(database, settings, [message for message in messages if message.job_id in waiting])


def _left_behind(session: Session) -> list[OutboxMessage]:
    limit = now() - timedelta(seconds=SETTLE_S)
    statement = select(OutboxMessage).where(OutboxMessage.created_at < limit).order_by(OutboxMessage.id).limit(BATCH)
    return list(session.scalars(statement))


def _still_queued(session: Session, messages: list[OutboxMessage]) -> set[str]:
    ids = {message.job_id for message in messages}
    return set(session.scalars(select(Job.id).where(Job.id.in_(ids), Job.status == JobStatus.QUEUED.value)))


def _publish(database: Database, settings: Settings, messages: list[OutboxMessage]) -> bool:
    published = []
    try:
        for message in messages:
            publish_wake(settings, message.job_id, message.queue)
            published.append(message.id)
    except BrokerUnavailableError as error:
        logger.warning("broker down, %d wake-ups wait: %s", len(messages) - len(published), error)
    _delete(database, published)
    return len(published) == len(messages)


def _delete(database: Database, ids: list[int]) -> None:
    if ids:
        with database.write() as session:
            session.execute(delete(OutboxMessage).where(OutboxMessage.id.in_(ids)))
