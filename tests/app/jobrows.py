"""Rows for tests of jobs: written through the service's own functions where there are any."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy.orm import Session

from app.core.ids import new_id
from app.db.session import Database
from app.db.tables import Job, Model, Tenant
from app.jobs import transitions
from app.jobs.outcomes import PublishedFile
from app.jobs.transitions import Fence
from nupes_client.schemas.jobs import JobResult, Layer, MetricsPair, Quality
from nupes_client.schemas.specs import JobSpec


def add_tenant(database: Database) -> str:
    tenant = Tenant(name=new_id("name"))
    with database.write() as session:
        session.add(tenant)
    return tenant.id


def add_model(database: Database, tenant_id: str, **columns: Any) -> str:
    defaults = {
        "name": "tiny",
        "source": {"type": "upload"},
        "config": {"model_type": "llama"},
        "headers": {},
        "architecture": "LlamaForCausalLM",
        "model_type": "llama",
        "params": 1,
        "bytes": 2,
        "dtype": "F32",
        "findings": [],
    }
    model = Model(tenant_id=tenant_id, **{**defaults, **columns})
    with database.write() as session:
        session.add(model)
    return model.id


def add_job(
    database: Database,
    tenant_id: str,
    model_id: str,
    beside: Callable[[Session, Job], None] | None = None,
    **columns: Any,
) -> str:
    """Add a queued job and, in the same transaction, what `beside` writes: a worker sees both or neither."""
    spec = columns.pop("spec", {"evaluation": None})
    config = JobSpec.model_validate({"model": {"id": model_id}, **spec}).model_dump(mode="json")
    defaults = {"config": config, "config_hash": "0" * 64, "labels": {}}
    job = Job(tenant_id=tenant_id, model_id=model_id, **{**defaults, **columns})
    with database.write() as session:
        transitions.create(session, job)
        if beside is not None:
            beside(session, job)
    return job.id


def new_job(database: Database, **columns: Any) -> str:
    """A job of a tenant of its own."""
    tenant_id = add_tenant(database)
    return add_job(database, tenant_id, add_model(database, tenant_id), **columns)


def read_job(database: Database, job_id: str) -> Job:
    with database.read() as session:
        return session.get_one(Job, job_id)


def claim(database: Database, job_id: str, owner: str = "worker-1", lease_s: float = 60) -> Fence:
    with database.write() as session:
        fence = transitions.claim(session, job_id, owner, lease_s)
    assert fence is not None
    return fence


def make_result(**changes: Any) -> JobResult:
    fields = {
        "bytes_before": 1000,
        "bytes_after": 300,
        "bits_per_weight": 4.25,
        "coverage_pct": 97.0,
        "quantized_params": 970,
        "params": 1000,
        "quantize_seconds": 0.5,
    }
    return JobResult(**{**fields, **changes})


def make_metrics(before: float | None, after: float | None, **quantized: float) -> MetricsPair:
    return MetricsPair(
        protocol="nupes-eval-1",
        context=256,
        text_origin="user",
        baseline=Quality(perplexity=before),
        quantized=Quality(perplexity=after, **quantized),
    )


def make_layer(name: str = "model.layers.0.self_attn.q_proj", **changes: Any) -> Layer:
    fields = {
        "name": name,
        "shape": [128, 64],
        "params": 8192,
        "bytes_before": 16384,
        "bytes_after": 4352,
        "bits": 4,
        "group_size": 64,
        "layout": "signed",
        "exponent": 0.75,
        "mse": 1e-5,
        "sqnr_db": 20.5,
        "cosine": 0.995,
        "skipped_reason": None,
    }
    return Layer(**{**fields, **changes})


def make_file(path: str = "model.safetensors", sha256: str = "a" * 64, size: int = 3) -> PublishedFile:
    return PublishedFile("nupes", path, size, sha256, "application/octet-stream")
