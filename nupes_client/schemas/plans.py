"""Plans: what a job would do and cost, from headers alone."""

from __future__ import annotations

from pydantic import Field

from nupes_client.schemas.base import Response
from nupes_client.schemas.jobs import JobSpec


class PlannedLayer(Response):
    """One weight: what it will be coded as, or why it is left alone."""

    name: str
    shape: list[int]
    params: int
    bytes_before: int
    bytes_after: int
    bits: int | None
    group_size: int | None
    skipped_reason: str | None


class Plan(Response):
    """The prediction for a job."""

    config: JobSpec
    layers: list[PlannedLayer]
    params: int
    eligible_params: int
    coverage_pct: float
    coverage_bytes_pct: float
    bytes_before: int
    artifact_bytes: int = Field(description="Exact size of the weight files of the native artifact.")
    bits_per_weight: float
    peak_memory_bytes: int
    disk_bytes: int
    seconds: float
    worker_classes: list[str]
