"""Run a child to its end, or end it: the one loop between a job and the process that does the work."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any

from worker.child import Child, Command
from worker.emitter import DONE

TICK_S = 0.2


class Stop(StrEnum):
    """Why a child has to end before it is done."""

    LEASE_LOST = "lease_lost"
    WORKER_STOPPING = "worker_stopping"
    CANCELLED = "cancelled"
    TIMEOUT = "timeout"


class StoppedError(Exception):
    """The child was ended on purpose."""

    def __init__(self, reason: Stop) -> None:
        super().__init__(reason.value)
        self.reason = reason


def supervise(
    command: Command,
    on_event: Callable[[dict[str, Any]], None],
    watch: Callable[[], Stop | None],
    grace_s: float,
    *,
    tell: str | None = None,
) -> int:
    """Run `command` and return its exit status (-N: ended by signal N).

    Args:
        command: what to run.
        on_event: called with each event of the child.
        watch: asked several times a second whether the child has to end.
        grace_s: from TERM to KILL. A child whose lease was lost gets none: another may be writing the same files.
        tell: a line for the standard input of a child that is told things; secrets go there.

    Raises:
        StoppedError: `watch` said so. Nothing of the child runs any more, as after every other way out.
    """
    child = Child(command)
    try:
        if tell is not None:
            child.tell(tell)
        return attend(child, on_event, watch, grace_s)
    finally:
        child.close()


def attend(
    child: Child, on_event: Callable[[dict[str, Any]], None], watch: Callable[[], Stop | None], grace_s: float
) -> int:
    """Attend to a child until it ends, or says that it is done with what it was told: then 0, and it lives on.

    Raises:
        StoppedError: `watch` said so, and the child has ended.
    """
    while (status := child.poll()) is None:
        for event in child.events(TICK_S):
            if event["type"] == DONE:
                return 0
            on_event(event)
        if reason := watch():
            child.stop(0.0 if reason is Stop.LEASE_LOST else grace_s)
            raise StoppedError(reason)
    return status
