"""The end of a worker: it takes no more at once, and what it has in hand may go on for a while."""

from __future__ import annotations

import threading
import time


class Shutdown:
    """Told to end once, by a signal; asked by all threads."""

    def __init__(self, grace_s: float = 0.0) -> None:
        self._grace_s = grace_s
        self._deadline = float("inf")
        self._begun = threading.Event()

    def begin(self) -> None:
        """Take no more jobs. Safe in a signal handler, and to call again."""
        if not self._begun.is_set():
            self._deadline = time.monotonic() + self._grace_s
            self._begun.set()

    def hurry(self) -> None:
        """Give back at once what is in hand."""
        self._deadline = 0.0
        self._begun.set()

    @property
    def begun(self) -> bool:
        """Whether no more jobs are taken."""
        return self._begun.is_set()

    @property
    def overdue(self) -> bool:
        """Whether what is in hand has to be given back."""
        return time.monotonic() >= self._deadline
