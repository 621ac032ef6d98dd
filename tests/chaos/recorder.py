"""Watches jobs and events while things go wrong: what is written once must stay as it is."""

from __future__ import annotations

import threading
from collections import defaultdict
from types import TracebackType

from sqlalchemy import select
from sqlalchemy.exc import DBAPIError

from app.db.session import Database
from app.db.tables import Job, JobEvent
from nupes_client.schemas.jobs import JobStatus

LOOK_S = 0.3


class Recorder:
    """Looks at the tables several times a second, until left.

    Attributes:
        violations: what changed although it must not.
        looks: how often the tables were read.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="recorder", daemon=True)
        self._ends: dict[str, str] = {}
        self._events: dict[str, dict[int, tuple[str, str]]] = defaultdict(dict)
        self.violations: list[str] = []
        self.looks = 0

    def __enter__(self) -> Recorder:
        self._thread.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _tb: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join(60)

    def _watch(self) -> None:
        while not self._over.wait(LOOK_S):
            try:
                self.look()
            except DBAPIError:  # locked or away: that is what we are here for
                continue

    def look(self) -> None:
        """Read everything once and compare it with what was seen before."""
        with self._database.read() as session:
            statuses = session.execute(select(Job.id, Job.status)).all()
            events = list(session.scalars(select(JobEvent)))
        self.looks += 1
        for job_id, status in statuses:
            self._see_status(job_id, status)
        for event in events:
            self._see_event(event)

    def _see_status(self, job_id: str, status: str) -> None:
        before = self._ends.get(job_id)
        if before is not None and status != before:
            self.violations.append(f"{job_id} had ended as {before} and became {status}")
        if JobStatus(status).is_terminal:
            self._ends[job_id] = status

    def _see_event(self, event: JobEvent) -> None:
        content = (event.type, repr(event.data))
        if self._events[event.job_id].setdefault(event.seq, content) != content:
            self.violations.append(f"event {event.seq} of {event.job_id} was rewritten")
