"""Tell workers that there is something to do."""

from __future__ import annotations

import logging
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

from app.queue.broker import SOCKET_TIMEOUT_S, WAKE_TASK, publisher_options, queue_name, register_transport
from app.settings import Settings

if TYPE_CHECKING:
    from kombu import Producer

logger = logging.getLogger(__name__)


class BrokerUnavailableError(Exception):
    """The broker did not take the message; the outbox still has it."""


class Publisher:
    """Publishes over one connection, made when it is needed and kept while it works. For one thread."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._producer: Producer | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def publish(self, job_id: str, queue: str) -> None:
        """Publish one wake-up, as a Celery task message (protocol 2), without importing celery.

        A connection that has been of use may have died since: then a new one is tried, once. A wake-up published twice
        does no harm.

        Args:
            job_id: what to look at.
            queue: device class, `cpu` or `gpu`.

        Raises:
            BrokerUnavailableError: at once, or after the socket timeout; nothing is retried here.
        """
        kept = self._producer is not None
        try:
            _publish(self._connected(), queue_name(self._settings, queue), job_id)
        except _failures() as error:
            self.close()
            if not kept:
                raise BrokerUnavailableError(f"wake-up of {job_id}: {type(error).__name__}") from error
            self.publish(job_id, queue)

    def close(self) -> None:
        """Give the connection up; the next message makes another."""
        producer, self._producer = self._producer, None
        if producer is not None:
            with suppress(Exception):  # it is of no use any more, whatever state it is in
                producer.connection.close()

    def _connected(self) -> Producer:
        if self._producer is None:
            self._producer = _connect(self._settings)
        return self._producer


def check(settings: Settings) -> None:
    """Connect as a publisher would: past the port, a broker may still refuse who asks.

    Raises:
        BrokerUnavailableError: it does not answer, or refuses.
    """
    try:
        _connect(settings).connection.close()
    except _failures() as error:
        raise BrokerUnavailableError(str(error)) from error


def _failures() -> tuple[type[Exception], ...]:
    """Kombu's OperationalError covers the drivers' own kinds, but not that RabbitMQ refuses a login."""
    from amqp.exceptions import AMQPError
    from kombu.exceptions import KombuError

    return (KombuError, AMQPError, OSError)


def _connect(settings: Settings) -> Producer:
    from kombu import Connection, Producer

    register_transport()
    connection = Connection(
        settings.resolved_broker_url, connect_timeout=SOCKET_TIMEOUT_S, transport_options=publisher_options(settings)
    )
    try:
        connection.ensure_connection(max_retries=0, interval_start=0, interval_step=0, timeout=SOCKET_TIMEOUT_S)
        return Producer(connection.channel())
    except BaseException:
        connection.close()
        raise


def _publish(producer: Producer, name: str, job_id: str) -> None:
    from kombu import Queue

    task_id = str(uuid.uuid4())
    producer.publish(
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
