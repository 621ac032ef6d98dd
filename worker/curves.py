"""Points of curves on their way from the process that measures them: together, about once a second, none lost."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from nupes_core.report import Metric
from worker.emitter import Emitter

INTERVAL_S = 1.0
MOST_POINTS = 10_000
"""In one message; beyond it a message is sent early, because the supervisor cuts off lines without end."""


class Curves:
    """Takes points one by one. Leaving its `with` block sends those that still wait, however it is left."""

    def __init__(self, emitter: Emitter) -> None:
        self._emitter = emitter
        self._waiting: list[Metric] = []
        self._sent_at = float("-inf")

    def add(self, metric: Metric) -> None:
        """Take a point."""
        self._waiting.append(metric)
        self.send_due()

    def send_due(self) -> None:
        """Send what waits, unless that was done a moment ago."""
        if time.monotonic() - self._sent_at >= INTERVAL_S or len(self._waiting) >= MOST_POINTS:
            self.send()

    def send(self) -> None:
        """Send what waits."""
        if self._waiting:
            self._emitter.send("metrics", points=[[each.series, each.step, each.value] for each in self._waiting])
            self._waiting = []
            self._sent_at = time.monotonic()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Send what waits."""
        self.send()
