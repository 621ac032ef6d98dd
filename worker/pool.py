"""Celery's prefork pool, with a word from each pool process when it is about to wait for its first message."""

from __future__ import annotations

from typing import Any

from celery.concurrency import prefork
from celery.utils.dispatch import Signal

pool_process_ready = Signal(name="pool_process_ready")
"""Sent in the main thread of a pool process. Celery's `worker_process_init` comes earlier: handlers of signals that are
set in it are replaced by billiard's."""


def _announcing(pool: type[Any]) -> type[Any]:
    base: Any = pool.Worker

    class Worker(base):  # type: ignore[misc]
        def on_loop_start(self, pid: int) -> None:
            super().on_loop_start(pid)
            pool_process_ready.send(sender=pid)

    return type(pool.__name__, (pool,), {"Worker": Worker})


class TaskPool(prefork.TaskPool):  # type: ignore[misc]
    """For `worker_pool`."""

    Pool = _announcing(prefork.TaskPool.Pool)
    BlockingPool = _announcing(prefork.TaskPool.BlockingPool)
