"""The event stream of a job: resumed where it broke, ended by the event that ends the job."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
from pydantic import ValidationError

from nupes_client.errors import NupesError
from nupes_client.schemas.jobs import TERMINAL_STATUSES, JobEvent
from nupes_client.sse import messages
from nupes_client.transport import Transport, checked, unreachable

SILENCE_S = 45.0
"""Three missed heartbeats: the connection is dead."""
FAILURES_IN_A_ROW = 5


class StreamUnavailableError(NupesError):
    """The service (or something before it) does not answer with an event stream."""


class JobStream:
    """Events of one job from `after` on.

    Attributes:
        last: sequence number of the last event seen.
        ended: whether the event that ends the job was seen.
    """

    def __init__(self, transport: Transport, job_id: str, *, after: int = 0) -> None:
        self._transport = transport
        self._path = f"/v1/jobs/{job_id}/events/stream"
        self.last = after
        self.ended = False

    def events(self) -> Iterator[JobEvent]:
        """Yield events until the job ends, reconnecting as needed.

        Raises:
            ServiceUnreachableError: several connections in a row brought nothing.
            ApiError: the service refused.
        """
        failures = 0
        while not self.ended:
            before = self.last
            problem: Exception = ConnectionError("the stream ended early")
            try:
                for event in self.connect(SILENCE_S):
                    if event is not None:
                        yield event
            except httpx.TransportError as error:
                problem = error
            failures = 0 if self.last > before else failures + 1
            if failures >= FAILURES_IN_A_ROW:
                raise unreachable(self._transport.url, problem)
            if not self.ended:
                self._transport.pause(max(failures, 1))

    def connect(self, silence_s: float) -> Iterator[JobEvent | None]:
        """Yield the events of one connection; None for each heartbeat.

        Raises:
            httpx.TransportError: the connection broke, or was silent for `silence_s`.
            StreamUnavailableError: the answer is no event stream.
            ApiError: the service refused.
        """
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
        if self.last:
            headers["Last-Event-ID"] = str(self.last)
        with self._transport.stream(self._path, headers=headers, timeout_s=silence_s) as response:
            if not response.is_success:
                response.read()
                checked(response)
            if response.status_code == httpx.codes.NO_CONTENT:  # all there is was seen before
                self.ended = True
                return
            if not response.headers.get("Content-Type", "").startswith("text/event-stream"):
                raise StreamUnavailableError(f"{response.url} is not an event stream")
            for message in messages(response.iter_lines()):
                yield None if message.is_heartbeat else self._accept(message.data)

    def _accept(self, data: str) -> JobEvent | None:
        try:
            event = JobEvent.model_validate_json(data)
        except ValidationError:
            return None  # a kind of message this version does not know
        if event.seq <= self.last:
            return None
        self.last = event.seq
        self.ended = self.ended or (event.type == "status" and event.data.get("to") in TERMINAL_STATUSES)
        return event
