"""Child processes that die with us, speak with a prefix, and come back when they die alone."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

LEASH = Path(__file__).with_name("leash.py")
PR_SET_CHILD_SUBREAPER = 36
STOP_S = 10.0
HEALTHY_S = 30.0
"""A child that lived this long starts over with the shortest delay."""
FIRST_DELAY_S = 0.5
LAST_DELAY_S = 30.0
REMEMBERED_LINES = 15

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_writing = threading.Lock()


@dataclass(frozen=True)
class Program:
    """What a child runs."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    descriptors: Sequence[int] = ()


@dataclass
class Child:
    """One program, started again and again until told to stop. Start it from the main thread alone: the kernel ties
    its life to the thread that started it.
    """  # noqa: D205

    program: Program
    width: int
    deaths: int = 0
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=REMEMBERED_LINES))
    _coloured: bool = field(default_factory=sys.stderr.isatty)
    _process: subprocess.Popen[bytes] | None = None
    _started: float = 0.0
    _restart_at: float = 0.0

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Start the program in a process group of its own, so that Ctrl-C reaches us alone."""
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(LEASH), str(os.getpid()), *self.program.command],
            env=dict(self.program.environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=tuple(self.program.descriptors),
            process_group=0,
        )
        self._started = time.monotonic()
        threading.Thread(target=self._relay, args=(self._process,), daemon=True).start()

    def tend(self) -> None:
        """Notice a death and start again when its delay is over."""
        if self._process is not None and self._process.poll() is not None:
            self._note_death(self._process.returncode)
        if self._process is None and time.monotonic() >= self._restart_at:
            self.start()

    def signal(self, number: signal.Signals) -> None:
        """Signal the whole process group."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def gone(self) -> bool:
        """Whether the program itself has ended."""
        return self._process is None or self._process.poll() is not None

    def _note_death(self, code: int) -> None:
        self.signal(signal.SIGKILL)  # what is left of its group
        if time.monotonic() - self._started >= HEALTHY_S:
            self.deaths = 0
        delay = min(LAST_DELAY_S, FIRST_DELAY_S * 2**self.deaths)
        self.deaths += 1
        self._process = None
        self._restart_at = time.monotonic() + delay
        self._say(f"ended with code {code}; starting again in {delay:g} s")

    def _relay(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with process.stdout as stream:
            for line in stream:
                text = line.decode("utf-8", "replace").rstrip()
                text = text if self._coloured else _COLOUR.sub("", text)
                self.lines.append(text)
                self._say(text)

    def _say(self, text: str) -> None:
        with _writing, contextlib.suppress(OSError, ValueError):
            sys.stderr.write(f"{self.program.name:<{self.width}} | {text}\n")
            sys.stderr.flush()


class Family:
    """All children of this process, and whatever they leave behind."""

    def __init__(self, programs: Sequence[Program]) -> None:
        width = max(len(program.name) for program in programs)
        self.children = [Child(program, width) for program in programs]
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # orphans of our children come to us

    def start(self) -> None:
        """Start all."""
        for child in self.children:
            child.start()

    def tend(self) -> None:
        """Start the dead again, bury orphans that ended."""
        for child in self.children:
            child.tend()
        for pid in self._orphans():
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)

    def stop(self, impatient: Callable[[], bool] = lambda: False) -> None:
        """Ask all to end, wait, then kill what is left, orphans included; leaves no process behind.

        Args:
            impatient: asked while waiting; True cuts the waiting short.
        """
        for child in self.children:
            child.signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_S
        while not all(child.gone() for child in self.children):
            if time.monotonic() >= deadline or impatient():
                break
            time.sleep(0.05)
        for child in self.children:
            child.signal(signal.SIGKILL)
        self._await(deadline=time.monotonic() + STOP_S)

    def _await(self, deadline: float) -> None:
        """Kill and bury orphans until none is left: killing one may hand us its children."""
        while time.monotonic() < deadline:
            orphans = self._orphans()
            if not orphans and all(child.gone() for child in self.children):
                return
            for pid in orphans:
                with contextlib.suppress(ProcessLookupError, ChildProcessError):
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, os.WNOHANG)
            time.sleep(0.02)

    def _orphans(self) -> list[int]:
        known = {child.pid for child in self.children}
        return [pid for pid in _own_children() if pid not in known]


def _own_children() -> list[int]:
    pids: list[int] = []
    for task in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):
            pids.extend(int(pid) for pid in task.read_text().split())
    return pids
