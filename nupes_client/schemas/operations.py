"""Health, capabilities, workers."""

from __future__ import annotations

from typing import Literal

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


class WorkerInfo(Response):
    """A worker that reports in."""

    id: str
    device_class: str
    hostname: str
    status: Literal["idle", "busy", "lost"]
    job_id: str | None
    memory_bytes: int | None
    heartbeat_at: Timestamp
