"""A child process in a session of its own, its events, and its end: whole process group, no orphan."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

LAUNCHER = Path(__file__).with_name("launch.py")
MAX_LINE_BYTES = 8 * 2**20
READ_BYTES = 1 << 16
KILL_WAIT_S = 1.0
PR_SET_CHILD_SUBREAPER = 36

Network = Literal["shared", "none"]


@dataclass(frozen=True)
class Command:
    """What to run.

    Attributes:
        module: `python -m` this.
        args: after it; never secrets, everybody on the machine can read them.
        env: the whole environment.
        cwd: where.
        log: standard error is appended to this file.
        network: whether it shares ours, or has none: a namespace of its own.
        told: it is told by `Child.tell` what to do; else its standard input is empty.
    """

    module: str
    args: Sequence[str]
    env: Mapping[str, str]
    cwd: Path
    log: Path
    network: Network = "shared"
    told: bool = False


class Child:
    """A running child. Its first process leads a new session, so that one signal reaches all it started."""

    def __init__(self, command: Command) -> None:
        launcher = [sys.executable, "-I", "-S", str(LAUNCHER), str(os.getpid()), command.network]
        program = [sys.executable, "-P", "-m", command.module, *command.args]
        with command.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*launcher, *program],
                stdin=subprocess.PIPE if command.told else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=dict(command.env),
                cwd=command.cwd,
                start_new_session=True,
            )
        assert self._process.stdout is not None
        self._pipe = self._process.stdout
        os.set_blocking(self._pipe.fileno(), False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._pipe, selectors.EVENT_READ)
        self._rest = b""

    @property
    def pid(self) -> int:
        """Process id, and id of the group."""
        return self._process.pid

    def tell(self, line: str) -> None:
        """Write a line to standard input. What has ended hears nothing, and its status says so."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"{line}\n".encode())
            self._process.stdin.flush()

    def events(self, timeout: float) -> Iterator[dict[str, Any]]:
        """Yield the events that have come; wait up to `timeout` seconds for the first. Other output is skipped."""
        if not self._selector.get_map():
            self._wait(timeout)
            return
        if not self._selector.select(timeout):
            return
        content = self._pipe.read(READ_BYTES)
        if not content:
            self._selector.unregister(self._pipe)
        *lines, rest = (self._rest + (content or b"")).split(b"\n")
        self._rest = rest[-MAX_LINE_BYTES:]
        yield from filter(None, map(_event, lines))

    def poll(self) -> int | None:
        """Return the exit status once the child has ended and all its events were read; -N means signal N."""
        # A grandchild may hold the pipe after the child is gone: take what is there, do not wait for its end.
        status = self._process.poll()
        return None if status is None or self._pending() else status

    def stop(self, grace_s: float) -> None:
        """TERM to the group, `grace_s` seconds, then KILL; returns when nothing of it runs any more."""
        if grace_s > 0:
            self._signal(signal.SIGTERM)
            self._wait(grace_s)
        self.close()

    def close(self) -> None:
        """KILL what is left of the group and release the pipe."""
        self._signal(signal.SIGKILL)
        self._wait(KILL_WAIT_S)
        self._selector.close()
        self._pipe.close()
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()

    def _pending(self) -> bool:
        return bool(self._selector.get_map()) and bool(self._selector.select(0))

    def _wait(self, timeout: float) -> None:
        """Wait for the whole group, not only for its leader."""
        deadline = time.monotonic() + timeout
        while self._alive() and time.monotonic() < deadline:
            time.sleep(0.02)

    def _alive(self) -> bool:
        if self._process.poll() is not None:
            self._reap_adopted()
        return self._signal(0)

    def _reap_adopted(self) -> None:
        """Collect ended grandchildren; they become ours where `adopt_orphans` was called."""
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-self.pid, os.WNOHANG) != (0, 0):
                continue

    def _signal(self, number: int) -> bool:
        """Signal the group; False when there is none any more."""
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            return False
        return True


def adopt_orphans() -> None:
    """Make this process the parent of grandchildren whose parent ends, so that it can collect them."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _event(line: bytes) -> dict[str, Any] | None:
    if not line.startswith(b"{"):
        return None
    with contextlib.suppress(ValueError):
        event = json.loads(line)
        if isinstance(event, dict) and isinstance(event.get("type"), str):
            return event
    return None
