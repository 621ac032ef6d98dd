"""Rows to wire models."""

from __future__ import annotations

from app.db import tables
from nupes_client.schemas import jobs as wire

JOBS_PATH = "/v1/jobs"


def job_view(job: tables.Job) -> wire.Job:
    """The job as clients see it."""
    return wire.Job.model_validate(
        {
            **{name: getattr(job, name) for name in _SAME},
            "is_terminal": wire.JobStatus(job.status).is_terminal,
            "progress": {name: getattr(job, f"progress_{name}") for name in wire.ProgressInfo.model_fields},
            "worker": job.worker_id,
            "waiting": _waiting(job),
            "links": job_links(job.id),
        }
    )


def _waiting(job: tables.Job) -> wire.Waiting | None:
    if job.waiting_reason is None:
        return None
    return wire.Waiting(
        reason=wire.WaitingReason(job.waiting_reason),
        device_class=job.device_class,
        needed_bytes=job.memory_bytes,
        largest_bytes=job.waiting_largest_bytes,
    )


def job_links(job_id: str) -> wire.JobLinks:
    """Where to go from a job; paths on this service."""
    base = f"{JOBS_PATH}/{job_id}"
    return wire.JobLinks(
        self=base,
        events=f"{base}/events",
        stream=f"{base}/events/stream",
        layers=f"{base}/layers",
        logs=f"{base}/logs",
        metrics=f"{base}/metrics",
        report=f"{base}/report",
        artifacts=f"{base}/artifacts",
        cancel=f"{base}/cancel",
    )


def event_view(event: tables.JobEvent) -> wire.JobEvent:
    """The event as clients see it."""
    return wire.JobEvent(seq=event.seq, type=event.type, data=event.data, created_at=event.created_at)


def layer_view(layer: tables.JobLayer) -> wire.Layer:
    """The layer as clients see it, without its histogram."""
    return wire.Layer.model_validate(layer.data)


def counted_layer_view(layer: tables.JobLayer) -> wire.Layer:
    """The layer with its histogram, which has to be loaded."""
    return wire.Layer.model_validate({**layer.data, "histogram": layer.histogram})


def shard_view(shard: tables.JobShard) -> wire.Shard:
    """The work on one file as clients see it."""
    same = {name: getattr(shard, name) for name in wire.Shard.model_fields if name != "worker"}
    return wire.Shard.model_validate({**same, "worker": shard.worker_id})


def ends_job(event: wire.JobEvent) -> bool:
    """Whether nothing comes after this event."""
    return event.type == "status" and wire.JobStatus(event.data["to"]).is_terminal


_OWN = {"is_terminal", "progress", "worker", "waiting", "links"}
_SAME = [name for name in wire.Job.model_fields if name not in _OWN]
