"""The Celery app: it carries wake-ups and owns the pool processes. The truth is in the database.

Celery's main process touches no database; each pool process is a `Slot`.
"""

from __future__ import annotations

import logging
import os
import signal
from typing import Any

from celery import Celery, signals
from kombu import Queue

from app.core.logging import configure_logging
from app.queue.broker import WAKE_TASK, consumer_options, queue_name, register_transport
from app.settings import Settings, get_settings
from worker.child import adopt_orphans
from worker.slot import Slot

logger = logging.getLogger(__name__)

GIVE_BACK = signal.SIGRTMIN
"""From main process to pool process: take no more jobs, give back the one in hand. Billiard claims the usual ones."""

register_transport()
app = Celery("nupes")


def configure(settings: Settings) -> Celery:
    """Set up broker, queue and behaviour from the settings."""
    name = queue_name(settings, settings.device_class)
    app.conf.update(
        broker_url=settings.resolved_broker_url,
        broker_transport_options=consumer_options(settings),
        broker_connection_retry=True,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,  # for ever: the table poll does the work meanwhile
        task_queues=[Queue(name, routing_key=name)],
        task_default_queue=name,
        task_default_exchange="",
        task_ignore_result=True,
        task_acks_late=False,  # with Redis, late acks run long tasks again and again
        task_serializer="json",
        accept_content=["json"],
        result_backend=None,
        worker_pool="prefork",
        worker_concurrency=1,
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=settings.resolved_broker_url.startswith("redis"),
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
    )
    return app


_slot: Slot | None = None
_worker: Any = None


@app.task(name=WAKE_TASK)  # type: ignore[untyped-decorator]
def wake(job_id: str) -> None:
    """Look at the table. The id says why; the most urgent job comes first, whichever it is."""
    logger.debug("woken for %s", job_id)
    if _slot is not None:
        _slot.work()


def _log(**_: Any) -> None:
    configure_logging(get_settings())


def _remember_worker(sender: Any, **_: Any) -> None:
    global _worker
    _worker = sender


def _open_slot(**_: Any) -> None:
    global _slot
    adopt_orphans()
    _slot = Slot(get_settings())
    signal.signal(GIVE_BACK, _give_back)
    _slot.start()


def _close_slot(**_: Any) -> None:
    if _slot is not None:
        _slot.close()


def _pass_on(**_: Any) -> None:
    """A warm shutdown waits for tasks; ours end soon because their jobs are given back."""
    for pid in _worker.pool.info["processes"] if _worker and _worker.pool else ():
        os.kill(pid, GIVE_BACK)


def _give_back(*_: object) -> None:
    if _slot is not None:
        _slot.stop()


for each, receiver in (
    (signals.setup_logging, _log),
    (signals.worker_init, _remember_worker),
    (signals.worker_process_init, _open_slot),
    (signals.worker_process_shutdown, _close_slot),
    (signals.worker_shutting_down, _pass_on),
):
    each.connect(receiver, weak=False)
