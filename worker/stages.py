"""The stages of an attempt: child processes that run one after the other in a work folder."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from app.core import tracing
from app.settings import Settings
from worker import commands
from worker.failures import JobFailedError, exit_failure
from worker.shardrunner import MODULE, ShardRunner
from worker.supervisor import Stop, supervise
from worker.workfolder import JobFolder

logger = logging.getLogger(__name__)


class EventSink(Protocol):
    """Takes the events of children; `failure` is what the last one gave up for."""

    failure: JobFailedError | None

    def __call__(self, event: dict[str, Any]) -> None:
        """Take one event."""


class Stages:
    """Runs children in one folder, watched."""

    def __init__(
        self, settings: Settings, folder: JobFolder, events: EventSink, watch: Callable[[], Stop | None]
    ) -> None:
        self._settings = settings
        self._folder = folder
        self._events = events
        self._watch = watch

    def run(self, module: str, *, online: bool = False) -> None:
        """Run `python -m module FOLDER` to its end.

        Args:
            module: one of our children.
            online: it moves files, so it gets storage and hub in its environment.

        Raises:
            JobFailedError: it gave up, or was ended by somebody else.
            StoppedError: the watch said so.
        """
        make = commands.moving if online else commands.computing
        command = make(self._settings, module, self._folder)
        grace_s = self._settings.cancel_grace_s
        self._attend(module, command.log, lambda: supervise(command, self._events, self._watch, grace_s))

    def run_pusher(self, token: str) -> None:
        """Have what the folder's orders name pushed to the hub; raises as `run` does."""
        command, grace_s = commands.pushing(self._settings, self._folder), self._settings.cancel_grace_s
        run = lambda: supervise(command, self._events, self._watch, grace_s, tell=token)  # noqa: E731
        self._attend(command.module, command.log, run)

    def run_shard(self, runner: ShardRunner) -> None:
        """Have the file of a sharded model in the folder done by a process that lives on; raises as `run` does."""
        self._attend(MODULE, runner.log, lambda: runner.run(self._folder, self._events, self._watch))

    def _attend(self, module: str, log: Path, run: Callable[[], int]) -> None:
        started = time.monotonic()
        with tracing.span(module):
            status = run()
        logger.info(
            "%s: %s ended with %d after %.1f s", self._folder.path.name, module, status, time.monotonic() - started
        )
        if status not in {0, 1}:
            logger.warning("%s: %s said: %s", self._folder.path.name, module, _tail(log))
        if self._events.failure is not None:
            raise self._events.failure
        if status != 0:
            raise exit_failure(status)


def _tail(log: Path, size: int = 4000) -> str:
    """The last bytes of what the children printed, for the operator's log."""
    try:
        return log.read_bytes()[-size:].decode(errors="replace")
    except OSError:
        return ""
