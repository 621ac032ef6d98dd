"""Health, capabilities, workers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from nupes_client.schemas.base import Response, Timestamp


class Check(Response):
    """One part of the service."""

    name: str
    status: Literal["ok", "degraded", "down"]
    detail: str | None = None


class Readiness(Response):
    """`degraded` still takes work (a dead broker costs latency, never jobs); `down` does not."""

    status: Literal["ok", "degraded", "down"]
    version: str
    checks: list[Check]


class Capabilities(Response):
    """What this service can be asked for."""

    version: str
    methods: list[str]
    optimize: list[str]
    bits: list[int]
    formats: list[str]
    max_upload_bytes: int
    hub: bool


Isolation = Literal["namespace", "environment"]
WorkerStatus = Literal["idle", "busy", "draining", "drained", "lost"]


class WorkerInfo(Response):
    """A worker that reports in."""

    id: str
    device_class: str
    hostname: str
    status: WorkerStatus = Field(description="`draining` finishes its job and takes no other; `drained` has finished.")
    job_id: str | None
    memory_bytes: int | None = Field(description="What a job may use here.")
    isolation: Isolation | None = Field(
        description="What keeps runners from the network: a namespace of their own, or no credentials and offline mode."
    )
    heartbeat_at: Timestamp


class QueueInfo(Response):
    """Jobs that wait for workers of one class."""

    device_class: str
    depth: int
    oldest_seconds: float | None = Field(description="How long the first of them has waited.")
    workers: int = Field(description="Live workers of the class that take jobs.")
