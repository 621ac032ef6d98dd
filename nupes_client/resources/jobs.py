"""Jobs: create, look, wait, cancel."""

from __future__ import annotations

import builtins
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from nupes_client.errors import ApiError
from nupes_client.events import JobStream
from nupes_client.resources.bodies import job_body
from nupes_client.resources.paging import every
from nupes_client.schemas.jobs import Job, JobEvent, JobMetrics, JobStatus, Layer, MetricSeries
from nupes_client.schemas.reports import JobComparison, LogFormat, ReportFormat
from nupes_client.schemas.specs import JobCreate
from nupes_client.transport import Transport
from nupes_client.waiting import Waiter

NOT_REPLAYED = frozenset({JobStatus.FAILED, JobStatus.CANCELLED})


@dataclass(frozen=True)
class Snapshot:
    """A job as it was under an ETag."""

    job: Job
    etag: str


class Jobs:
    """`/v1/jobs`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(self, body: JobCreate | Mapping[str, Any], *, idempotency_key: str | None = None) -> Job:
        """Submit a job.

        Without a key the wish itself is the key: the same body for the same model is the same job, however often a
        pipeline sends it. A job that failed or was cancelled does not stand in the way of another try.

        Args:
            body: what is wished for; a mapping, such as what a JSON file holds, is read as one.
            idempotency_key: equal keys are the same job.

        Raises:
            pydantic.ValidationError: the mapping is no such body.
            ApiError: the service refused.
        """
        body = job_body(body)
        if idempotency_key is not None:
            return self._post(body, idempotency_key)
        job = self._post(body, natural_key(body))
        while job.status in NOT_REPLAYED:
            job = self._post(body, natural_key(body, after=job.id))
        return job

    def get(self, job_id: str) -> Job:
        """Return one job."""
        return Job.model_validate_json(self._transport.request("GET", f"/v1/jobs/{job_id}").content)

    def poll(self, job_id: str, *, etag: str | None = None, wait_s: int | None = None) -> Snapshot | None:
        """Return the job if it differs from what `etag` stands for, else None.

        Args:
            job_id: the job.
            etag: of an earlier snapshot.
            wait_s: ask the service to answer only on a change or after this long.
        """
        headers = {"If-None-Match": etag} if etag else {}
        if wait_s:
            headers["Prefer"] = f"wait={wait_s}"
        timeout_s = wait_s + 30.0 if wait_s else None
        response = self._transport.request("GET", f"/v1/jobs/{job_id}", headers=headers, timeout_s=timeout_s)
        if response.status_code == 304:
            return None
        return Snapshot(Job.model_validate_json(response.content), response.headers.get("ETag", ""))

    def list(
        self,
        *,
        status: JobStatus | None = None,
        model_id: str | None = None,
        labels: Mapping[str, str] | None = None,
        name: str | None = None,
        verdict: str | None = None,
        limit: int | None = None,
    ) -> Iterator[Job]:
        """Yield jobs, newest first, page after page."""
        params: dict[str, Any] = {f"label.{name}": value for name, value in (labels or {}).items()}
        params |= {"status": status.value if status else None, "model_id": model_id}
        params |= {"name": name, "verdict": verdict}
        return every(self._transport, "/v1/jobs", Job, params=params, limit=limit)

    def cancel(self, job_id: str) -> Job:
        """Ask for a job to stop; asking twice is the same as asking once."""
        response = self._transport.request("POST", f"/v1/jobs/{job_id}/cancel", repeatable=True)
        return Job.model_validate_json(response.content)

    def retry(self, job_id: str) -> Job:
        """Submit the wish of a job that failed or was cancelled; asking twice gives the same new job."""
        headers = {"Idempotency-Key": f"nupes-retry-{job_id}"}
        return Job.model_validate_json(
            self._transport.request("POST", f"/v1/jobs/{job_id}/retry", headers=headers).content
        )

    def wait(
        self, job_id: str, *, timeout_s: float | None = None, on_update: Callable[[Job], None] | None = None
    ) -> Job:
        """Return the job once it has ended, however it ended.

        Follows the event stream and falls back to long polling where something between here and the service breaks
        streams.

        Args:
            job_id: the job.
            timeout_s: give up after this long; None: never.
            on_update: called with each new state, the first and the last included.

        Raises:
            WaitTimeoutError: not ended in time; the job keeps running.
            ServiceUnreachableError: the service stayed away.
        """
        return Waiter(self, job_id, timeout_s=timeout_s, on_update=on_update).wait()

    def events(self, job_id: str, *, after: int = 0) -> Iterator[JobEvent]:
        """Yield the events of a job as they happen, until it ends; a broken stream is resumed where it broke.

        Raises:
            ServiceUnreachableError: the stream could not be resumed.
        """
        return JobStream(self._transport, job_id, after=after).events()

    def stream(self, job_id: str, *, after: int = 0) -> JobStream:
        """The event stream itself, with its heartbeats."""
        return JobStream(self._transport, job_id, after=after)

    def past_events(self, job_id: str, *, after: int = 0) -> Iterator[JobEvent]:
        """Yield what happened so far."""
        return every(self._transport, f"/v1/jobs/{job_id}/events", JobEvent, params={"after": after or None})

    def layers(self, job_id: str, *, names: Sequence[str] = (), histograms: bool = False) -> Iterator[Layer]:
        """Yield the weights of the model and what was done to each.

        Args:
            job_id: the job.
            names: only these, at most 8; all when empty.
            histograms: whether to tell how the weights of each spread over its grid.
        """
        params = {"name": list(names) or None, "include": "histogram" if histograms else None}
        return every(self._transport, f"/v1/jobs/{job_id}/layers", Layer, params=params)

    def metrics(
        self, job_id: str, *, series: Sequence[str] = (), max_points: int | None = None
    ) -> builtins.list[MetricSeries]:
        """Return the curves of a job, such as losses of training, while it runs and afterwards.

        Args:
            job_id: the job.
            series: only these; all when empty.
            max_points: of each series; the service thins out longer ones and keeps first, last and extremes.
        """
        params = {"series": list(series) or None, "max_points": max_points}
        response = self._transport.request("GET", f"/v1/jobs/{job_id}/metrics", params=params)
        return JobMetrics.model_validate_json(response.content).data

    def logs(self, job_id: str, *, start: int = 0, tail: int | None = None, format: LogFormat = "text") -> bytes:  # noqa: A002
        """Return what happened to a job as lines; from byte `start` on, or the last `tail` lines.

        A log only grows: the next part starts where this one ends.
        """
        headers = {"Range": f"bytes={start}-"} if start else {}
        params = {"tail": tail, "format": format}
        try:
            return self._transport.request("GET", f"/v1/jobs/{job_id}/logs", params=params, headers=headers).content
        except ApiError as error:
            if error.status == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
                return b""  # nothing new
            raise

    def report(self, job_id: str, format: ReportFormat = "json") -> bytes:  # noqa: A002
        """Return the report of an ended job."""
        return self._transport.request("GET", f"/v1/jobs/{job_id}/report", params={"format": format}).content

    def compare(self, job_ids: Sequence[str]) -> JobComparison:
        """Put 2 to 8 jobs side by side."""
        response = self._transport.request("GET", "/v1/jobs/compare", params={"ids": [*job_ids]})
        return JobComparison.model_validate_json(response.content)

    def _post(self, body: JobCreate, key: str) -> Job:
        response = self._transport.request(
            "POST", "/v1/jobs", json=body.model_dump(mode="json"), headers={"Idempotency-Key": key}
        )
        return Job.model_validate_json(response.content)


def natural_key(body: JobCreate, *, after: str = "") -> str:
    """Return the idempotency key that a body makes by itself: equal wishes for equal content have equal keys.

    The body names the model by an id whose content never changes, and texts by uploads, which the service
    answers with the same id for the same bytes.
    """
    canonical = json.dumps(body.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return f"nupes-{hashlib.sha256(f'{canonical}{after}'.encode()).hexdigest()}"
