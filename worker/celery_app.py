"""The Celery app: it carries wake-ups and owns the pool processes. The truth is in the database.

Celery's main process touches no database; each pool process is a `Slot`.
"""

from __future__ import annotations

import logging
import os
from typing import Any

from celery import Celery, signals
from kombu import Queue

from app.core.logging import configure_logging
from app.queue.broker import WAKE_TASK, consumer_options, queue_name, register_transport
from app.settings import Settings, get_settings
from worker.child import adopt_orphans
from worker.pool import pool_process_ready
from worker.poolsignals import GIVE_BACK, PoolSignals
from worker.slot import Slot

logger = logging.getLogger(__name__)

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
        worker_pool="worker.pool:TaskPool",
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
_signals: PoolSignals | None = None
_worker: Any = None
_ending = False
"""Whether the main process was told to end; a pool process that it forks afterwards in place of one that died knows."""


@app.task(name=WAKE_TASK)  # type: ignore[untyped-decorator]
def wake(job_id: str) -> None:
    """Look at the table. The id says why; the most urgent job comes first, whichever it is."""
    logger.debug("woken for %s", job_id)
    if _slot is not None and _signals is not None:
        with _signals.message():
            _slot.work()


def _log(**_: Any) -> None:
    configure_logging(get_settings())


def _remember_worker(sender: Any, **_: Any) -> None:
    global _worker
    _worker = sender


def _open_slot(**_: Any) -> None:
    global _slot
    if _ending:
        return  # it would take the job that the process before it just gave back
    adopt_orphans()
    _slot = Slot(get_settings())
    _slot.start()


def _listen(**_: Any) -> None:
    global _signals
    if _slot is not None:
        _signals = PoolSignals(_slot)


def _close_slot(exitcode: int = 0, **_: Any) -> None:
    """Asked by the main process the job in hand has its grace; who signals the pool process itself is in a hurry."""
    if _slot is not None:
        _slot.close(at_once=exitcode < 0)


def _pass_on(**_: Any) -> None:
    """A warm shutdown waits for tasks; ours end soon because their jobs are given back."""
    global _ending
    _ending = True
    for pid in _worker.pool.info["processes"] if _worker and _worker.pool else ():
        os.kill(pid, GIVE_BACK)


for each, receiver in (
    (signals.setup_logging, _log),
    (signals.worker_init, _remember_worker),
    (signals.worker_process_init, _open_slot),
    (pool_process_ready, _listen),
    (signals.worker_process_shutdown, _close_slot),
    (signals.worker_shutting_down, _pass_on),
):
    each.connect(receiver, weak=False)
