"""Publishing wake-ups, and what happens to them while the broker is down."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from queue import Empty

import psutil
import pytest
import redis
from amqp.exceptions import AccessRefused
from kombu import Connection, Queue
from sqlalchemy import func, select, update

from app.core.clock import now
from app.db.session import Database
from app.db.tables import OutboxMessage
from app.jobs.service import cancel
from app.queue.broker import consumer_options, queue_name, register_transport
from app.queue.outbox import SETTLE_S, WakeUps, deliver, sweep
from app.queue.publisher import BrokerUnavailableError, Publisher, check
from app.settings import Settings
from tests.app.jobrows import new_job, read_job
from tests.servers import free_port
from tests.worker.factory import REPOSITORY


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A server that accepts and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def _queued(settings: Settings) -> list[str]:
    """Take all waiting wake-ups off the broker."""
    register_transport()
    with Connection(settings.resolved_broker_url, transport_options=consumer_options(settings)) as connection:
        name = queue_name(settings, "cpu")
        queue = connection.SimpleQueue(Queue(name, routing_key=name))
        found = []
        with contextlib.suppress(Empty):
            while True:
                message = queue.get(timeout=0.5)
                found.append(message.payload[0][0])
                message.ack()
        return found


def _outbox_size(database: Database) -> int:
    with database.read() as session:
        return session.scalar(select(func.count()).select_from(OutboxMessage)) or 0


def _age_outbox(database: Database) -> None:
    with database.write() as session:
        session.execute(update(OutboxMessage).values(created_at=now() - timedelta(seconds=SETTLE_S + 1)))


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_a_broker_that_is_down_costs_the_request_less_than_a_second(
    make_settings: Callable[..., Settings], silent_port: int, scheme: str
) -> None:
    for port in (free_port(), silent_port):
        settings = make_settings(broker_url=f"{scheme}://127.0.0.1:{port}/0")
        started = time.monotonic()
        with pytest.raises(BrokerUnavailableError), Publisher(settings) as publisher:
            publisher.publish("job_1", "cpu")
        assert time.monotonic() - started < 1.5


def test_a_broker_that_refuses_the_login_is_no_broker(
    make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_settings: Settings) -> None:
        raise AccessRefused("Login was refused")  # as RabbitMQ does; kombu lets it through

    monkeypatch.setattr("app.queue.publisher._connect", refuse)
    settings = make_settings(broker_url="amqp://127.0.0.1/")
    with pytest.raises(BrokerUnavailableError), Publisher(settings) as publisher:
        publisher.publish("job_1", "cpu")
    with pytest.raises(BrokerUnavailableError, match="Login was refused"):
        check(settings)


def test_the_service_pays_for_the_broker_client_on_first_use_only_and_never_for_celery() -> None:
    code = (
        "import sys, app.queue.outbox; print([name in sys.modules for name in ('kombu', 'celery', 'redis', 'torch')])"
    )
    output = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert output.stdout.strip() == str([False] * 4)


def test_a_delivered_wake_up_is_on_the_broker_and_off_the_outbox(
    make_settings: Callable[..., Settings], database_url: str, broker_url: str
) -> None:
    settings = make_settings(database_url=database_url, broker_url=broker_url)
    database = Database(settings.resolved_database_url)
    job_id = new_job(database)
    assert deliver(database, settings, job_id)
    assert _queued(settings) == [job_id]
    assert _outbox_size(database) == 0
    database.dispose()


def _own_addresses(server: redis.Redis) -> set[str]:
    """The addresses by which a Redis, which others may use too, knows the connections of this process."""
    own = {f"{each.laddr.ip}:{each.laddr.port}" for each in psutil.Process().net_connections() if each.laddr}
    return own & {each["addr"] for each in server.client_list()}


def test_a_publisher_keeps_its_connection_and_survives_the_loss_of_it(
    make_settings: Callable[..., Settings], redis_url: str
) -> None:
    settings = make_settings(broker_url=redis_url)
    with redis.Redis.from_url(redis_url) as server, Publisher(settings) as publisher:
        others = _own_addresses(server)
        publisher.publish("job_1", "cpu")
        made = _own_addresses(server) - others
        assert made
        publisher.publish("job_2", "cpu")
        assert _own_addresses(server) - others == made
        for address in made:
            server.client_kill_filter(addr=address)
        publisher.publish("job_3", "cpu")
    assert _queued(settings) == ["job_1", "job_2", "job_3"]


def test_wake_ups_of_many_jobs_at_once_reach_the_broker_once_each_and_leave_the_outbox(
    make_settings: Callable[..., Settings], database_url: str, broker_url: str
) -> None:
    settings = make_settings(database_url=database_url, broker_url=broker_url)
    database = Database(settings.resolved_database_url)
    job_ids = [new_job(database) for _ in range(12)]
    wake_ups = WakeUps(database, settings)

    async def deliver_all() -> None:
        await asyncio.gather(*(wake_ups.deliver(job_id) for job_id in job_ids))

    asyncio.run(deliver_all())
    wake_ups.close()
    assert sorted(_queued(settings)) == sorted(job_ids)
    assert _outbox_size(database) == 0
    database.dispose()


def test_the_sweeper_publishes_what_was_left_while_the_broker_was_down(
    make_settings: Callable[..., Settings], database_url: str, broker_url: str
) -> None:
    settings = make_settings(database_url=database_url, broker_url=broker_url)
    broken = settings.model_copy(update={"broker_url": f"redis://127.0.0.1:{free_port()}/0"})
    database = Database(settings.resolved_database_url)
    job_ids = [new_job(database) for _ in range(3)]
    assert not deliver(database, broken, job_ids[0])
    _age_outbox(database)
    assert not sweep(database, broken)
    assert _outbox_size(database) == 3
    assert sweep(database, settings)
    assert sorted(_queued(settings)) == sorted(job_ids)
    assert _outbox_size(database) == 0
    database.dispose()


def test_the_sweeper_leaves_fresh_rows_to_the_request_and_drops_those_of_jobs_that_wait_no_longer(
    settings: Settings,
) -> None:
    database = Database(settings.resolved_database_url)
    job_id = new_job(database)
    assert sweep(database, settings)
    assert _outbox_size(database) == 1
    with database.write() as session:
        cancel(session, read_job(database, job_id).tenant_id, job_id)
    _age_outbox(database)
    assert sweep(database, settings)
    assert _outbox_size(database) == 0
    assert not settings.queue_dir.exists()
    database.dispose()
