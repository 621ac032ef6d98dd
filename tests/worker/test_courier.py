"""Couriers: every message arrives, none twice at the same time, and bad receivers hold nobody up."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import select, update

from app.core.clock import now
from app.core.secret_key import load_pepper
from app.db.session import Database
from app.db.tables import Job, Webhook, WebhookAttempt, WebhookDelivery
from app.jobs.service import cancel
from app.settings import Settings
from app.webhooks import repository
from app.webhooks.announce import announce_test
from app.webhooks.claims import AT_ONCE, claim
from app.webhooks.results import LOG_KEPT, RETRY_FOR, disable, record, tidy
from app.webhooks.secrets import SecretBox
from app.webhooks.sending import Outcome
from nupes_client.schemas.webhooks import DeliveryErrorCode, DeliveryStatus, DisabledReason, WebhookEvent
from tests.app import receivers
from tests.app.jobrows import add_job, add_model, add_tenant
from tests.app.receivers import Handler, Receiver, receiver
from tests.servers import free_port
from tests.stack import as_environment
from tests.worker.factory import REPOSITORY, wait_for, worker_process
from worker.courier import LANE_THREADS, Courier


class Post:
    """A tenant with webhooks on receivers of this machine."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.database = Database(settings.resolved_database_url)
        self.box = SecretBox(load_pepper(settings))
        self.tenant_id = add_tenant(self.database)
        self.secrets: dict[str, str] = {}

    def webhook(self, url: str) -> str:
        secret, sealed = self.box.make()
        row = Webhook(
            tenant_id=self.tenant_id, url=url, events=[e.value for e in WebhookEvent], labels={}, secret=sealed
        )
        with self.database.write() as session:
            session.add(row)
        self.secrets[row.id] = secret
        return row.id

    def message(self, webhook_id: str) -> str:
        with self.database.write() as session:
            return announce_test(session, session.get_one(Webhook, webhook_id)).id

    def read(self, delivery_id: str) -> WebhookDelivery:
        with self.database.read() as session:
            return session.get_one(WebhookDelivery, delivery_id)

    def read_webhook(self, webhook_id: str) -> Webhook:
        with self.database.read() as session:
            return session.get_one(Webhook, webhook_id)

    def set(self, delivery_id: str, **columns: Any) -> None:
        with self.database.write() as session:
            session.execute(update(WebhookDelivery).where(WebhookDelivery.id == delivery_id).values(**columns))

    def attempts(self, delivery_id: str) -> list[WebhookAttempt]:
        with self.database.read() as session:
            query = select(WebhookAttempt).where(WebhookAttempt.delivery_id == delivery_id)
            return list(session.scalars(query.order_by(WebhookAttempt.number)))

    def courier(self, stopping: threading.Event | None = None) -> Courier:
        return Courier(self.database, self.settings, stopping or threading.Event())

    @contextmanager
    def courier_at_work(self) -> Iterator[None]:
        """A courier that goes on until the end, for receivers that would hold `work` up."""
        stopping = threading.Event()
        courier = self.courier(stopping)

        def work() -> None:
            while not stopping.is_set():
                courier.work()
                stopping.wait(0.05)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            stopping.set()
            thread.join()


@pytest.fixture
def settings(make_settings: Callable[..., Settings], database_url: str) -> Settings:
    return make_settings(
        database_url=database_url, webhook_http=True, webhook_networks="127.0.0.0/8", webhook_timeout_s=20, poll_s=0.2
    )


@pytest.fixture
def post(settings: Settings) -> Iterator[Post]:
    post = Post(settings)
    yield post
    post.database.dispose()


@pytest.fixture
def well() -> Iterator[Receiver]:
    with receiver() as running:
        yield running


def test_a_change_of_a_job_arrives_signed(post: Post, well: Receiver) -> None:
    webhook_id = post.webhook(well.url)
    job_id = add_job(post.database, post.tenant_id, add_model(post.database, post.tenant_id))
    with post.database.write() as session:
        cancel(session, post.tenant_id, job_id)
    post.courier().work()
    seen = {str(got.verified_by(post.secrets[webhook_id])["type"]) for got in well.got}
    assert seen == {"job.queued", "job.cancelled"}
    assert len({got.message_id for got in well.got}) == 2


def test_a_failed_message_is_tried_again_later_under_the_same_id(post: Post, well: Receiver) -> None:
    webhook_id = post.webhook(well.url)
    delivery_id = post.message(webhook_id)
    well.behave = receivers.answering(500, b"not now")
    post.courier().work()
    row = post.read(delivery_id)
    assert (row.status, row.attempts) == (DeliveryStatus.PENDING, 1)
    assert row.next_attempt_at
    assert timedelta(seconds=3) < row.next_attempt_at - now() < timedelta(seconds=13)
    post.courier().work()
    assert len(well.got) == 1
    well.behave = receivers.taking
    post.set(delivery_id, next_attempt_at=now())
    post.courier().work()
    assert post.read(delivery_id).status == DeliveryStatus.SUCCEEDED
    assert [got.message_id for got in well.got] == [delivery_id] * 2
    assert well.got[0].body == well.got[1].body
    assert [(each.response_status, each.response_excerpt) for each in post.attempts(delivery_id)] == [
        (500, "not now"),
        (200, "thanks"),
    ]


def test_retry_after_holds_back_all_messages_to_the_receiver(post: Post, well: Receiver) -> None:
    webhook_id = post.webhook(well.url)
    well.behave = receivers.answering(429, Retry_After="600")
    first = post.message(webhook_id)
    post.courier().work()
    well.behave = receivers.taking
    post.message(webhook_id)
    post.courier().work()
    assert len(well.got) == 1
    row = post.read(first)
    assert row.next_attempt_at
    assert timedelta(seconds=590) < row.next_attempt_at - now() <= timedelta(seconds=600)
    with post.database.write() as session:
        session.get_one(Webhook, webhook_id).paused_until = now()
    post.courier().work()
    assert len(well.got) == 2


def test_receivers_that_hang_hold_nobody_up(post: Post, well: Receiver) -> None:
    """More receivers hang, with more messages each, than there are threads; the good one gets all of its own."""
    with receiver(receivers.hanging) as hanging:
        for _ in range(LANE_THREADS + 2):
            webhook_id = post.webhook(hanging.url)
            with post.database.write() as session:
                session.get_one(Webhook, webhook_id).failing_since = now()
            for _ in range(3):
                post.message(webhook_id)
        good = post.webhook(well.url)
        expected = {post.message(good) for _ in range(20)}
        began = time.monotonic()
        with post.courier_at_work():
            wait_for(lambda: {got.message_id for got in well.got} == expected, 60, "messages of the good receiver")
            assert time.monotonic() - began < post.settings.webhook_timeout_s, "it waited for the bad ones"
            hanging.released.set()


def test_a_receiver_that_begins_to_hang_takes_a_few_threads_only(post: Post, well: Receiver) -> None:
    with receiver(receivers.hanging) as hanging:
        bad, good = post.webhook(hanging.url), post.webhook(well.url)
        for _ in range(LANE_THREADS + 4):
            post.message(bad)
        expected = {post.message(good) for _ in range(5)}
        with post.courier_at_work():
            wait_for(lambda: {got.message_id for got in well.got} == expected, 15, "messages of the good receiver")
            assert len(hanging.got) <= AT_ONCE[False]
            hanging.released.set()


def test_a_receiver_gets_a_few_requests_at_once_and_one_when_it_fails(post: Post) -> None:
    most = {"now": 0, "ever": 0}
    lock = threading.Lock()

    def counting(handler: Handler) -> None:
        with lock:
            most["now"] += 1
            most["ever"] = max(most.values())
        time.sleep(0.05)
        with lock:
            most["now"] -= 1
        handler.answer(200)

    with receiver(counting) as running:
        webhook_id = post.webhook(running.url)
        ids = {post.message(webhook_id) for _ in range(12)}
        couriers = [threading.Thread(target=post.courier().work) for _ in range(2)]
        for thread in couriers:
            thread.start()
        for thread in couriers:
            thread.join()
    assert sorted(got.message_id for got in running.got) == sorted(ids)
    assert 1 < most["ever"] <= AT_ONCE[False]
    with post.database.write() as session:
        session.get_one(Webhook, webhook_id).failing_since = now()
    for _ in range(3):
        post.message(webhook_id)
    assert len(claim(post.database, failing=True, limit=8)) == AT_ONCE[True]
    assert claim(post.database, failing=True, limit=8) == []
    assert claim(post.database, failing=False, limit=8) == []


def test_couriers_that_look_at_the_same_moment_take_different_messages(post: Post) -> None:
    webhooks = [post.webhook("http://127.0.0.1:9/") for _ in range(6)]
    ids = {post.message(webhook_id) for webhook_id in webhooks for _ in range(3)}
    start = threading.Barrier(4)
    taken: list[str] = []

    def look() -> None:
        start.wait()
        taken.extend(parcel.delivery_id for parcel in claim(post.database, failing=False, limit=100))

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == len(set(taken))
    assert set(taken) <= ids
    assert set(taken) | {p.delivery_id for p in claim(post.database, failing=False, limit=100)} == ids


def test_a_courier_that_lost_its_lease_records_nothing(post: Post) -> None:
    delivery_id = post.message(post.webhook("http://127.0.0.1:9/"))
    (late,) = claim(post.database, failing=False, limit=1)
    post.set(delivery_id, lease_until=now() - timedelta(seconds=1))
    (winner,) = claim(post.database, failing=False, limit=1)
    with post.database.write() as session:
        assert not record(session, late, Outcome(now(), 1, DeliveryErrorCode.TIMEOUT))
    with post.database.write() as session:
        assert record(session, winner, Outcome(now(), 1, None, 200, ""))
    assert post.read(delivery_id).status == DeliveryStatus.SUCCEEDED
    assert len(post.attempts(delivery_id)) == 1


def test_a_message_whose_courier_died_between_sending_and_recording_is_sent_again_under_its_id(
    post: Post, well: Receiver
) -> None:
    """The courier is a process of its own, killed while the receiver, which has the message, has not answered yet."""
    well.behave = receivers.hanging
    delivery_id = post.message(post.webhook(well.url))
    with child_courier(post.settings) as process:
        wait_for(lambda: well.got, 120, "the message")
        process.kill()
        process.wait()
    row = post.read(delivery_id)
    assert (row.status, row.attempts) == (DeliveryStatus.PENDING, 0)
    well.behave = receivers.taking
    post.courier().work()
    assert len(well.got) == 1, "the lease still stands"
    post.set(delivery_id, lease_until=now() - timedelta(seconds=1))
    post.courier().work()
    assert [got.message_id for got in well.got] == [delivery_id] * 2
    assert post.read(delivery_id).status == DeliveryStatus.SUCCEEDED


def test_the_receiver_of_the_examples_takes_what_is_signed_and_each_message_once(post: Post) -> None:
    port = free_port()
    webhook_id = post.webhook(f"http://127.0.0.1:{port}/")
    with example_receiver(port, post.secrets[webhook_id]) as lines:
        delivery_id = post.message(webhook_id)
        post.courier().work()
        assert post.read(delivery_id).status == DeliveryStatus.SUCCEEDED
        post.set(delivery_id, status=DeliveryStatus.PENDING, next_attempt_at=now())
        post.courier().work()
        forged = {"webhook-id": "msg_x", "webhook-timestamp": str(int(time.time())), "webhook-signature": "v1,AAAA"}
        assert httpx.post(f"http://127.0.0.1:{port}/", content=b"{}", headers=forged).status_code == 401
    assert len(post.attempts(delivery_id)) == 2
    assert [line.split()[0] for line in lines] == ["webhook.test"]


@contextmanager
def example_receiver(port: int, secret: str) -> Iterator[list[str]]:
    """Run the example; what it printed after it began is in the list at the end."""
    lines: list[str] = []
    process = subprocess.Popen(
        [sys.executable, str(REPOSITORY / "examples" / "webhook_receiver.py"), "--port", str(port)],
        env={**os.environ, "NUPES_RECEIVER_SECRET": secret},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline().startswith("listening")
        yield lines
    finally:
        process.kill()
        lines += process.stdout.read().splitlines()
        process.wait()


COURIER = """
import threading
from app.db.session import Database
from app.settings import get_settings
from worker.courier import Courier
settings = get_settings()
Courier(Database(settings.resolved_database_url), settings, threading.Event()).work()
"""


@contextmanager
def child_courier(settings: Settings) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-c", COURIER], cwd=REPOSITORY, env={**os.environ, **as_environment(settings)}
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_worker_with_another_secret_key_sends_nothing_and_blames_nobody(
    post: Post, well: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    webhook_id = post.webhook(well.url)
    delivery_id = post.message(webhook_id)
    stranger = post.settings.model_copy(update={"data_dir": post.settings.data_dir / "elsewhere"})
    Courier(post.database, stranger, threading.Event()).work()
    assert well.got == []
    assert (post.read(delivery_id).attempts, post.read_webhook(webhook_id).failing_since) == (0, None)
    assert "NUPES_SECRET_KEY" in caplog.text


def test_a_disabled_receiver_gets_nothing_until_it_is_enabled_and_old_messages_are_given_up(
    post: Post, well: Receiver
) -> None:
    webhook_id = post.webhook(well.url)
    kept, old = post.message(webhook_id), post.message(webhook_id)
    with post.database.write() as session:
        disable(session.get_one(Webhook, webhook_id), DisabledReason.USER)
    post.set(old, next_attempt_at=now() - RETRY_FOR - timedelta(minutes=1))
    post.courier().work()
    tidy(post.database)
    assert well.got == []
    assert (post.read(old).status, post.read(kept).status) == (DeliveryStatus.FAILED, DeliveryStatus.PENDING)
    with post.database.write() as session:
        session.get_one(Webhook, webhook_id).enabled = True
    post.courier().work()
    assert [got.message_id for got in well.got] == [kept]


def test_old_deliveries_are_forgotten_and_waiting_ones_never(post: Post, well: Receiver) -> None:
    webhook_id = post.webhook(well.url)
    ended, waiting = post.message(webhook_id), post.message(webhook_id)
    post.set(waiting, next_attempt_at=now() + timedelta(hours=1))
    post.courier().work()
    for delivery_id in (ended, waiting):
        post.set(delivery_id, created_at=now() - LOG_KEPT - timedelta(minutes=1))
    tidy(post.database)
    with post.database.read() as session:
        assert list(session.scalars(select(WebhookDelivery.id))) == [waiting]
        assert list(session.scalars(select(WebhookAttempt.delivery_id))) == []


def test_a_webhook_deleted_while_its_message_is_under_way_leaves_nothing(post: Post, well: Receiver) -> None:
    webhook_id = post.webhook(well.url)
    post.message(webhook_id)
    (parcel,) = claim(post.database, failing=False, limit=1)
    with post.database.write() as session:
        session.delete(session.get_one(Webhook, webhook_id))
    with post.database.write() as session:
        assert not record(session, parcel, Outcome(now(), 1, None, 200, ""))
        assert list(session.scalars(select(WebhookDelivery))) == []


def test_a_job_and_the_deletion_of_a_webhook_do_not_trip_over_each_other(post: Post) -> None:
    """While a job's transaction is about to write messages for a webhook, its deletion waits; the job never fails."""
    webhook_id = post.webhook("http://127.0.0.1:9/")
    job_id = add_job(post.database, post.tenant_id, add_model(post.database, post.tenant_id))
    errors: list[Exception] = []

    def delete() -> None:
        try:
            with post.database.write() as session:
                session.delete(session.get_one(Webhook, webhook_id))
        except Exception as error:
            errors.append(error)

    with post.database.write() as session:
        assert repository.listeners(session, post.tenant_id)  # the moment between reading webhooks and writing messages
        thread = threading.Thread(target=delete)
        thread.start()
        thread.join(0.3)
        assert thread.is_alive(), "the deletion did not wait"
        cancel(session, post.tenant_id, job_id)
    thread.join()
    assert errors == []
    with post.database.read() as session:
        assert session.get_one(Job, job_id).status == "cancelled"
        assert list(session.scalars(select(WebhookDelivery))) == []


def test_a_real_worker_delivers_beside_its_jobs(post: Post, well: Receiver) -> None:
    webhook_id = post.webhook(well.url)
    delivery_id = post.message(webhook_id)
    with worker_process(post.settings):
        wait_for(lambda: post.read(delivery_id).status == DeliveryStatus.SUCCEEDED, 240, "the delivery")
    assert well.got[0].verified_by(post.secrets[webhook_id])["data"] == {"webhook_id": webhook_id}
    log = (post.settings.data_dir / "worker.log").read_text()
    assert delivery_id in log
    assert post.secrets[webhook_id] not in log
    assert well.url not in log
