"""A service with something to see on every page: written through the service's own functions."""

from __future__ import annotations

import math
from dataclasses import dataclass

from app.core.secret_key import load_pepper
from app.db.session import Database
from app.db.tables import Job, Secret, Webhook, Worker
from app.jobs import outcomes
from app.jobs.metrics import Point, write_points
from app.keys.service import add_key, ensure_tenant
from app.settings import Settings
from nupes_client.schemas.jobs import FormatResult, JobError, JobPhase, Layer, ProgressInfo, Pushed
from nupes_client.schemas.problems import JobErrorCode
from tests.app.api import TENSORS, model_columns
from tests.app.jobrows import add_job, add_model, claim, make_file, make_layer, make_metrics, make_result


@dataclass(frozen=True)
class Sample:
    """Ids of what is there, by what it is."""

    tenant_id: str
    secret: str
    model: str
    succeeded: str
    learnt: str
    failed: str
    running: str
    queued: str
    webhook: str


PUSH = {"repo": "team/tiny", "secret": "team"}
PUSHED = Pushed(
    repo="team/tiny",
    revision="main",
    url="https://hub.example/team/tiny",
    commit="c" * 40,
    commit_url=f"https://hub.example/team/tiny/commit/{'c' * 40}",
    formats=["nupes"],
    files=3,
)


def fill(settings: Settings, database: Database) -> Sample:
    """Make a tenant with a key, a model, and jobs in all states."""
    with database.write() as session:
        tenant = ensure_tenant(session, "sample")
        secret = add_key(session, load_pepper(settings), tenant.id, "browser", ["admin"])[1]
        session.add(
            Worker(id="w-1", device_class="cpu", hostname="bench", memory_bytes=8 * 10**9, isolation="namespace")
        )
        session.add(Secret(tenant_id=tenant.id, name="team", kind="hub_token", sealed="of no use here"))
    model = add_model(database, tenant.id, **model_columns(TENSORS))
    webhook = _webhook(database, tenant.id)
    return Sample(
        tenant_id=tenant.id,
        secret=secret,
        model=model,
        succeeded=_succeeded(database, tenant.id, model, bits=4),
        learnt=_succeeded(database, tenant.id, model, bits=3, optimize={"mode": "data_driven"}, push_to_hub=PUSH),
        failed=_failed(database, tenant.id, model),
        running=_running(database, tenant.id, model),
        queued=add_job(database, tenant.id, model, name="waits its turn"),
        webhook=webhook,
    )


def _succeeded(database: Database, tenant_id: str, model: str, *, bits: int, **spec: object) -> str:
    wish = {
        "weights": {"bits": bits},
        "gates": {"max_bytes": 400, "min_coverage_pct": 98},
        "evaluation": None,
        **spec,
    }
    job_id = add_job(database, tenant_id, model, name=f"nightly {bits} bit", labels={"pipeline": "nightly"}, spec=wish)
    fence = claim(database, job_id)
    metrics = make_metrics(20.0, 20.0 + 4 / bits, kl=0.1 / bits, top1_agreement=0.9 + bits / 100)
    result = make_result(
        bytes_after=75 * bits,
        bits_per_weight=bits + 0.25,
        metrics=metrics,
        formats=[
            FormatResult(format=name, bytes_after=75, bits_per_weight=bits + 0.25, coverage_pct=97.0, metrics=metrics)
            for name in ("nupes", "gguf")
        ],
    )
    with database.write() as session:
        job = session.get_one(Job, job_id)
        for phase in (JobPhase.FETCHING, JobPhase.PLANNING, JobPhase.QUANTIZING, JobPhase.EVALUATING):
            outcomes.enter_phase(session, job, fence, phase)
        write_points(session, job_id, fence, list(_losses()))
        if "push_to_hub" not in spec:
            outcomes.succeed(session, job, fence, result, _layers(bits), _files())
            return job_id
        outcomes.publish(session, job, fence, result, _layers(bits), _files())
        outcomes.enter_phase(session, job, fence, JobPhase.PUSHING)
        outcomes.conclude(session, job, fence, PUSHED)
    return job_id


def _losses() -> list[Point]:
    return [
        Point(f"loss/model.layers.{block}", step, (block + 1) * math.exp(-step / 20) + 0.1)
        for block in range(3)
        for step in range(64)
    ]


def _layers(bits: int) -> list[Layer]:
    coded = [
        make_layer(
            f"model.layers.{block}.{part}",
            bits=bits,
            exponent=0.5 + 0.05 * ((3 * block + index) % 9),
            histogram=[round(1000 * math.exp(-((place - 31.5) ** 2) / 300)) for place in range(64)],
            sqnr_db=6.0 * bits - 3 + math.sin(block + index),
        )
        for block in range(6)
        for index, part in enumerate(("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"))
    ]
    left = make_layer(
        "lm_head",
        bits=None,
        group_size=None,
        layout=None,
        exponent=None,
        mse=None,
        sqnr_db=None,
        cosine=None,
        skipped_reason="excluded by the pattern 'lm_head'",
    )
    return [*coded, left]


def _files() -> list[outcomes.PublishedFile]:
    return [make_file("config.json", "b" * 64, 700), make_file("model.safetensors", "c" * 64, 4_096)]


def _failed(database: Database, tenant_id: str, model: str) -> str:
    job_id = add_job(database, tenant_id, model, name="too large")
    fence = claim(database, job_id)
    error = JobError(
        code=JobErrorCode.OOM_HOST,
        message="the runner was killed at 7.9 GB while quantizing",
        phase=JobPhase.QUANTIZING,
        hint="Give the worker more memory, or ask for a smaller context.",
    )
    with database.write() as session:
        job = session.get_one(Job, job_id)
        outcomes.enter_phase(session, job, fence, JobPhase.QUANTIZING)
        outcomes.fail(session, job, fence, error)
    return job_id


def _running(database: Database, tenant_id: str, model: str) -> str:
    job_id = add_job(database, tenant_id, model, name="on its way", priority=9)
    fence = claim(database, job_id, owner="w-1", lease_s=3600)
    with database.write() as session:
        job = session.get_one(Job, job_id)
        outcomes.enter_phase(session, job, fence, JobPhase.QUANTIZING)
        outcomes.report_progress(
            session, job, fence, ProgressInfo(fraction=0.4, current=12, total=30, unit="layers"), eta_seconds=42.0
        )
        session.get_one(Worker, "w-1").job_id = job_id
    return job_id


def _webhook(database: Database, tenant_id: str) -> str:
    """Made before the jobs, so that it is told of them."""
    row = Webhook(
        tenant_id=tenant_id,
        name="ci",
        url="https://ci.example/nupes",
        events=["job.running", "job.succeeded", "job.failed"],
        labels={},
        secret="sealed",
    )
    with database.write() as session:
        session.add(row)
    return row.id
