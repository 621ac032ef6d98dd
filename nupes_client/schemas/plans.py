"""Plans: what a job would do and cost, from headers alone."""

from __future__ import annotations

from pydantic import Field

from nupes_client.schemas.base import Response
from nupes_client.schemas.specs import JobSpec


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


class PlannedFormat(Response):
    """One format of a job."""

    format: str
    bytes_after: int = Field(description="Exact size of its weight files, without what it `adds`.")
    bits_per_weight: float
    coverage_pct: float
    adds: str | None = Field(
        None, description="What a file of this format has besides, uncounted: its `vocabulary` or its `graph`."
    )


class Plan(Response):
    """The prediction for a job; layers, coverage and bits are those of the format that is asked for first."""

    config: JobSpec
    layers: list[PlannedLayer]
    params: int
    eligible_params: int
    coverage_pct: float
    coverage_bytes_pct: float
    bytes_before: int
    artifact_bytes: int = Field(description="Size of the weight files of the first format; see `formats`.")
    formats: list[PlannedFormat] = Field([], description="In the order asked for.")
    bits_per_weight: float
    peak_memory_bytes: int = Field(description="Estimate; of the evaluation too, where one is asked for.")
    disk_bytes: int = Field(description="Of all formats.")
    seconds: float = Field(description="Estimate of the quantization for all formats.")
    worker_classes: list[str] = Field(description="Classes with a live worker that has the memory.")
    device_class: str = Field(description="The queue that a job would go to.")
