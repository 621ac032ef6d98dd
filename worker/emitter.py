"""What a child tells its supervisor: one JSON object a line, on a pipe of its own."""

from __future__ import annotations

import json
import os
from typing import IO, Any

DONE = "done"
"""The event of a child that is told what to do, after each thing."""


class Emitter:
    """Writes events to the pipe that the supervisor reads.

    The pipe arrives as standard output; it is moved away, and what libraries print goes to standard error, the log.
    """

    def __init__(self) -> None:
        self._pipe: IO[str] = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)

    def send(self, type_: str, **data: Any) -> None:
        """Send one event. Raises BrokenPipeError when nobody listens any more."""
        self._pipe.write(json.dumps({"type": type_, **data}, ensure_ascii=True) + "\n")
        self._pipe.flush()

    def phase(self, phase: str) -> None:
        """Say what is being done now."""
        self.send("phase", phase=phase)

    def progress(self, phase: str, current: int, total: int, unit: str) -> None:
        """Say how far the phase is."""
        self.send("progress", phase=phase, current=current, total=total, unit=unit)

    def log(self, message: str, level: str = "info") -> None:
        """A line for the user: no paths, no secrets."""
        self.send("log", level=level, message=message)
