"""Waiting for a job: the stream says when to look, the job itself says how it stands."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import httpx

from nupes_client.errors import ApiError, NotFoundError, ServerError, ServiceUnreachableError, WaitTimeoutError
from nupes_client.events import SILENCE_S, StreamUnavailableError
from nupes_client.schemas.jobs import Job

if TYPE_CHECKING:
    from nupes_client.resources.jobs import Jobs, Snapshot

PATIENCE_S = 60.0
"""How long the service may stay away during a wait."""
LONG_POLL_S = 20
LOOK_EVERY_S = 0.2
"""Events in quick succession are answered by one look."""
POLL_PAUSE_S = 1.0
"""Between polls when the service does not hold the answer back."""


class Waiter:
    """One wait for one job."""

    def __init__(
        self, jobs: Jobs, job_id: str, *, timeout_s: float | None, on_update: Callable[[Job], None] | None
    ) -> None:
        self._jobs = jobs
        self._job_id = job_id
        self._timeout_s = timeout_s
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._on_update = on_update
        self._etag: str | None = None
        self._job: Job | None = None
        self._looked = 0.0

    def wait(self) -> Job:
        """Return the ended job.

        Raises:
            WaitTimeoutError: the time is over.
        """
        job = self._look()
        if not job.is_terminal:
            self._follow_stream()
            job = self._look()
        while not job.is_terminal:
            job = self._long_poll()
        return job

    def _follow_stream(self) -> None:
        """Look whenever the stream says something; return when the job ended or the stream is no use."""
        stream = self._jobs.stream(self._job_id)
        progressed = True
        while progressed and not stream.ended:
            before = stream.last
            try:
                for event in stream.connect(min(SILENCE_S, self._left())):
                    if (
                        event is not None
                        and time.monotonic() - self._looked >= LOOK_EVERY_S
                        and self._look().is_terminal
                    ):
                        return
                    self._left()
            except (httpx.TransportError, StreamUnavailableError):
                self._left()
            except NotFoundError:
                return  # a service without streams; a job that is gone shows on the next look
            except ApiError as error:
                if not error.retryable:
                    raise
            progressed = stream.last > before

    def _long_poll(self) -> Job:
        began = time.monotonic()
        job = self._look(wait_s=max(1, int(min(LONG_POLL_S, self._left()))))
        if not job.is_terminal and time.monotonic() - began < POLL_PAUSE_S:
            time.sleep(min(POLL_PAUSE_S, self._left()))
        return job

    def _look(self, wait_s: int | None = None) -> Job:
        snapshot = self._poll(wait_s)
        self._looked = time.monotonic()
        if snapshot is not None:
            self._etag, self._job = snapshot.etag, snapshot.job
            if self._on_update is not None:
                self._on_update(snapshot.job)
        assert self._job is not None, "304 without a first answer"
        return self._job

    def _poll(self, wait_s: int | None) -> Snapshot | None:
        """Poll; once the job was seen, outlast a service that is away for a while (a restart, a new version)."""
        while True:
            try:
                return self._jobs.poll(self._job_id, etag=self._etag, wait_s=wait_s)
            except (ServiceUnreachableError, ServerError):
                if self._job is None or time.monotonic() - self._looked > PATIENCE_S:
                    raise
                time.sleep(min(POLL_PAUSE_S, self._left()))

    def _left(self) -> float:
        """Seconds left to wait.

        Raises:
            WaitTimeoutError: none.
        """
        if self._deadline is None:
            return float("inf")
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise WaitTimeoutError(self._job_id, self._timeout_s or 0.0)
        return left
