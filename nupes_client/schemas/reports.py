"""Reports and comparisons of ended jobs."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from nupes_client.schemas.artifacts import Artifact
from nupes_client.schemas.base import Response
from nupes_client.schemas.jobs import GateResult, Job, JobError, JobResult, JobStatus, Layer

ReportFormat = Literal["json", "markdown", "html", "junit"]
LogFormat = Literal["text", "jsonl"]


class JobReport(Response):
    """All that is known of an ended job, for people and archives."""

    job: Job
    seconds: float | None = Field(description="From its first claim to its end; None when no worker had it.")
    layers: list[Layer]
    artifacts: list[Artifact]


class ComparedJob(Response):
    """What stands at the head of a column."""

    id: str
    name: str | None
    status: JobStatus
    verdict: Literal["passed", "failed"] | None
    result: JobResult | None
    gates: list[GateResult]
    error: JobError | None


class Difference(Response):
    """A setting that is not the same in all jobs."""

    pointer: str = Field(description="JSON pointer into the config, e.g. `/weights/bits`.")
    values: list[Any] = Field(description="One for each job, in their order; null also where it is not there.")


class ComparedLayer(Response):
    """One weight in all jobs."""

    name: str
    layers: list[Layer | None] = Field(description="One for each job, in their order; null where it has none.")


class JobComparison(Response):
    """Jobs side by side; lists of values have one entry for each of `jobs`, in their order."""

    jobs: list[ComparedJob]
    cautions: list[str] = Field(
        [], description="What forbids to compare some figures, in sentences; the gravest first."
    )
    config: list[Difference]
    layers: list[ComparedLayer]
