"""Tell workers that there is something to do."""

from __future__ import annotations

import logging
import uuid
from typing import Any

from app.queue.broker import SOCKET_TIMEOUT_S, WAKE_TASK, publisher_options, queue_name, register_transport
from app.settings import Settings

logger = logging.getLogger(__name__)


class BrokerUnavailableError(Exception):
    """The broker did not take the message; the outbox still has it."""


def publish_wake(settings: Settings, job_id: str, queue: str) -> None:
    """Publish one wake-up, as a Celery task message (protocol 2), without importing celery.

    Args:
        settings: say which broker.
        job_id: what to look at.
        queue: device class, `cpu` or `gpu`.

    Raises:
        BrokerUnavailableError: at once, or after the socket timeout; nothing is retried here.
    """
    from kombu.exceptions import KombuError

    try:
        _publish(settings, job_id, queue)
    except (KombuError, OSError) as error:  # kombu's OperationalError covers the drivers' own kinds
        raise BrokerUnavailableError(f"wake-up of {job_id}: {type(error).__name__}") from error


def _publish(settings: Settings, job_id: str, queue: str) -> None:
    from kombu import Connection, Producer, Queue

    register_transport()
    name = queue_name(settings, queue)
    task_id = str(uuid.uuid4())
    connection = Connection(
        settings.resolved_broker_url, connect_timeout=SOCKET_TIMEOUT_S, transport_options=publisher_options(settings)
    )
    with connection:
        connection.ensure_connection(max_retries=0, interval_start=0, interval_step=0, timeout=SOCKET_TIMEOUT_S)
        Producer(connection.channel()).publish(
            [[job_id], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}],
            routing_key=name,
            declare=[Queue(name, routing_key=name)],
            headers=_headers(task_id, job_id),
            correlation_id=task_id,
            serializer="json",
            retry=False,
        )


def _headers(task_id: str, job_id: str) -> dict[str, Any]:
    return {
        "lang": "py",
        "task": WAKE_TASK,
        "id": task_id,
        "root_id": task_id,
        "parent_id": None,
        "group": None,
        "retries": 0,
        "eta": None,
        "expires": None,
        "timelimit": [None, None],
        "argsrepr": repr((job_id,)),
        "kwargsrepr": "{}",
        "ignore_result": True,
    }
