"""What a worker would write, through the functions a worker uses, so that a test decides when it happens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from app.db.session import Database
from app.db.tables import Job, JobLayer
from app.jobs.metrics import Point, write_points
from app.jobs.transitions import Fence, claim, record, transition
from nupes_client.schemas.jobs import GateResult, JobError, JobErrorCode, JobPhase, JobResult, JobStatus, Layer

RESULT = JobResult(
    bytes_before=1_000_000,
    bytes_after=300_000,
    bits_per_weight=4.25,
    coverage_pct=96.0,
    quantized_params=480_000,
    params=500_000,
    quantize_seconds=1.5,
)


def start(database: Database, job_id: str) -> Fence:
    with database.write() as session:
        fence = claim(session, job_id, "test-worker", 60.0)
    assert fence is not None
    return fence


def report(database: Database, job_id: str, fence: Fence, fraction: float) -> None:
    with database.write() as session:
        job = session.get_one(Job, job_id)
        data = {"phase": "quantizing", "current": 1, "total": 2, "unit": "tensors", "fraction": fraction}
        record(session, job, "progress", data, fence=fence, phase="quantizing", progress_fraction=fraction)


def end(database: Database, job_id: str, to: JobStatus, fence: Fence | None = None, **columns: Any) -> None:
    with database.write() as session:
        transition(session, session.get_one(Job, job_id), to, fence=fence, **columns)


def measure(database: Database, job_id: str, fence: Fence, series: str, values: Sequence[float]) -> None:
    points = [Point.of(series, step, value) for step, value in enumerate(values)]
    with database.write() as session:
        write_points(session, job_id, fence, points)


def succeed(database: Database, job_id: str, *, gate_passed: bool | None = None, layers: Sequence[Layer] = ()) -> None:
    fence = start(database, job_id)
    with database.write() as session:
        for position, layer in enumerate(layers):
            data = layer.model_dump(mode="json")
            histogram = data.pop("histogram")
            session.add(JobLayer(job_id=job_id, position=position, name=layer.name, data=data, histogram=histogram))
    gates = [] if gate_passed is None else [GateResult(gate="max_bytes", limit=1.0, measured=2.0, passed=gate_passed)]
    verdict = None if gate_passed is None else "passed" if gate_passed else "failed"
    columns = {"result": RESULT.model_dump(), "verdict": verdict, "gates": [gate.model_dump() for gate in gates]}
    end(database, job_id, JobStatus.SUCCEEDED, fence, **columns)


def fail(database: Database, job_id: str) -> None:
    error = JobError(
        code=JobErrorCode.DISK_FULL, message="the disk is full", phase=JobPhase.PACKAGING, hint="free some"
    )
    end(database, job_id, JobStatus.FAILED, start(database, job_id), error=error.model_dump(mode="json"))
