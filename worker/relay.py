"""From the events of a child to the database, with the fence on every write."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from app.db.session import Database
from app.db.tables import Job
from app.jobs.metrics import Point, write_points
from app.jobs.outcomes import PublishedFile, enter_phase, report_progress
from app.jobs.transitions import Fence, StaleFenceError, record
from nupes_client.schemas.jobs import JobPhase, JobResult, Layer, ProgressInfo, Pushed
from worker.failures import DATABASE_AWAY, MAX_MESSAGE, JobFailedError, reported_failure
from worker.phases import Timeline

logger = logging.getLogger(__name__)

MIN_INTERVAL_S = 0.25
EVENTS_PER_AGE = 200
"""Progress is written at most every `age / 200` seconds: a few hundred events for a minute and for a day."""

MAX_INTERVAL_S = 10.0
MIN_ETA_FRACTION = 0.02
MAX_LINES = 2000
"""Of the log in one attempt: a log is read whole, and no child may fill the database."""

Write = Callable[[Session, Job], None]


class Relay:
    """Takes the events of all children of a job. What a child sends is data: wrong shapes raise, and fail the job."""

    def __init__(self, database: Database, job_id: str, fence: Fence) -> None:
        self._database = database
        self._job_id = job_id
        self.fence = fence
        self._started = time.monotonic()
        self._written = self._fraction = 0.0
        self._points: list[Point] = []
        self._lines = 0
        self.phase = JobPhase.FETCHING
        self._entered: JobPhase | None = None
        self.timeline = Timeline()
        self.layers: list[Layer] = []
        self.files: list[PublishedFile] = []
        self.result: JobResult | None = None
        self.pushed: Pushed | None = None
        self.failure: JobFailedError | None = None
        self._handlers: dict[str, Callable[[dict[str, Any]], None]] = {
            "phase": self._on_phase,
            "progress": self._on_progress,
            "log": self._on_log,
            "metrics": self._on_metrics,
            "layer": lambda data: self.layers.append(Layer.model_validate(data)),
            "artifact": lambda data: self.files.append(PublishedFile(**data)),
            "result": self._on_result,
            "pushed": self._on_pushed,
            "error": self._on_error,
        }

    def __call__(self, event: dict[str, Any]) -> None:
        """Take one event; unknown types are skipped."""
        data = dict(event)
        handler = self._handlers.get(data.pop("type"))
        if handler:
            handler(data)

    def enter(self, phase: JobPhase) -> None:
        """Say what is being done now."""
        self.phase = self._entered = phase
        self._written = 0.0
        fraction = self.timeline.fraction(phase, 0, 0)
        self._write(lambda session, job: enter_phase(session, job, self.fence, phase, fraction=fraction))

    def write_points(self) -> None:
        """Write the points of curves that have come; those that can not be written now wait for the next call."""
        points = self._points
        if points and self._write(lambda session, job: write_points(session, job.id, self.fence, points)):
            self._points = []

    def _on_phase(self, data: dict[str, Any]) -> None:
        """A job never goes back: with its files done by many, the last child goes through phases that are over."""
        phase = JobPhase(data["phase"])
        if self._entered is None or self.timeline.follows(self._entered, phase):
            self.enter(phase)

    def _on_progress(self, data: dict[str, Any]) -> None:
        current, total = int(data["current"]), int(data["total"])
        age = time.monotonic() - self._started
        interval = min(max(MIN_INTERVAL_S, age / EVENTS_PER_AGE), MAX_INTERVAL_S)
        if time.monotonic() - self._written < interval and current < total:
            return
        self._written = time.monotonic()
        self._fraction = fraction = max(self._fraction, self.timeline.fraction(JobPhase(data["phase"]), current, total))
        eta = age * (1 - fraction) / fraction if fraction > MIN_ETA_FRACTION else None
        progress = ProgressInfo(fraction=fraction, current=current, total=total, unit=str(data["unit"])[:20])
        self._write(lambda session, job: report_progress(session, job, self.fence, progress, eta_seconds=eta))

    def _on_log(self, data: dict[str, Any]) -> None:
        self._lines += 1
        if self._lines > MAX_LINES:
            return
        message = str(data["message"])[:MAX_MESSAGE] if self._lines < MAX_LINES else "further lines are left out"
        line = {"level": str(data["level"])[:10], "message": message}
        self._write(lambda session, job: record(session, job, "log", line, fence=self.fence))

    def _on_metrics(self, data: dict[str, Any]) -> None:
        for series, step, value in data["points"]:
            self._points.append(Point.of(str(series), int(step), None if value is None else float(value)))
        self.write_points()

    def _on_result(self, data: dict[str, Any]) -> None:
        self.result = JobResult.model_validate(data)

    def _on_pushed(self, data: dict[str, Any]) -> None:
        self.pushed = Pushed.model_validate(data)

    def _on_error(self, data: dict[str, Any]) -> None:
        self.failure = reported_failure(data)

    def _write(self, write: Write) -> bool:
        """Write if it can be done now. Progress is worth no waiting: the end of the job is written with care.

        Returns:
            False when the same write may succeed later.
        """
        try:
            with self._database.write() as session:
                if job := session.get(Job, self._job_id):
                    write(session, job)
        except StaleFenceError:
            logger.info("%s: an event was not written, the job moved on", self._job_id)
        except DBAPIError as error:
            logger.warning("%s: an event was not written: %s", self._job_id, type(error).__name__)
            return not isinstance(error, DATABASE_AWAY)
        return True
