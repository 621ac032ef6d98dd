"""What a pool process does when it is signalled: give back the job in hand, leave no message unanswered.

Signals are read from Python's wake-up pipe by a thread. A handler of Python's own runs in the main thread and only when
that gets to it: of two signals in a row the kernel may hand both to another thread, and a main thread that waits for a
lock or a message then goes on waiting without having run a handler.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from worker.slot import Slot

GIVE_BACK = signal.SIGRTMIN
"""From main process to pool process: take no more jobs, give back the one in hand. Billiard claims the usual ones."""

QUIET_S = 3.0
"""Without a message for that long, a pool process that alone was told to end does end."""


class PoolSignals:
    """Passes TERM and `GIVE_BACK` on to the slot.

    The main process waits for the answer to each message when it is told to end; one that dies with its pool process
    never comes. So TERM, which may go to the whole group, ends this process only when the main one says nothing and no
    message is in hand; otherwise that one closes the pool.
    """

    def __init__(self, slot: Slot) -> None:
        """Begin to listen. Main thread only."""
        self._slot = slot
        self._messages = 0
        self._quiet_since = time.monotonic()
        self._main_ends = threading.Event()
        self._alone = False
        self._told, wake_up = os.pipe()
        os.set_blocking(wake_up, False)
        signal.set_wakeup_fd(wake_up, warn_on_full_buffer=False)
        signal.signal(GIVE_BACK, lambda *_: None)
        self._end = signal.signal(signal.SIGTERM, self._on_term)
        threading.Thread(target=self._listen, name="signals", daemon=True).start()

    @contextmanager
    def message(self) -> Iterator[None]:
        """A message is in hand."""
        self._messages += 1
        try:
            yield
        finally:
            self._quiet_since = time.monotonic()
            self._messages -= 1

    def _on_term(self, number: int, frame: FrameType | None) -> None:
        if self._alone and callable(self._end):
            self._end(number, frame)

    def _listen(self) -> None:
        while True:
            for number in os.read(self._told, 64):
                if number == GIVE_BACK:
                    self._main_ends.set()
                    self._slot.stop()
                elif number == signal.SIGTERM and not self._alone:
                    self._slot.stop(at_once=True)
                    threading.Thread(target=self._end_alone, name="end", daemon=True).start()

    def _end_alone(self) -> None:
        self._quiet_since = time.monotonic()
        while not self._main_ends.wait(QUIET_S / 10):
            if not self._messages and time.monotonic() - self._quiet_since > QUIET_S:
                self._alone = True
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
                return
