"""Request, attempt and stages are one trace when a collector is set; nothing of OpenTelemetry is there when none is."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from app.core import tracing
from app.settings import Settings
from nupes_client.schemas.jobs import JobStatus
from tests.app.api import Api, open_api
from tests.collector import running_collector
from tests.worker.factory import wait_for, wait_for_end, worker_log, worker_process, write_tiny_llama

STAGES = {"worker.fetcher", "worker.runner", "worker.runner_check", "worker.uploader"}
TRACE = "0af7651916cd43dd8448eb211c80319c"
OUTER = "b7ad6b7169203331"


def send_model(api: Api, folder: Path) -> str:
    """Upload a model folder as a user does."""
    files = []
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        upload = api.post("/v1/uploads", json={"filename": path.name, "size": len(content)}).json()["id"]
        assert api("PUT", f"/v1/uploads/{upload}/content", content=content).status_code == 200
        files.append({"path": path.name, "upload_id": upload})
    made = api.post("/v1/models", json={"source": {"type": "upload", "files": files}})
    assert made.status_code == 201, made.text
    return str(made.json()["id"])


def test_a_request_its_job_and_the_stages_are_one_trace(
    make_settings: Callable[..., Settings], sqlite_url: str, tmp_path: Path
) -> None:
    with running_collector() as collector:
        settings = make_settings(database_url=sqlite_url, poll_s=0.5, otlp_endpoint=collector.url)
        with open_api(settings) as api:
            body = api.body(send_model(api, write_tiny_llama(tmp_path / "model")))
            job_id = api.post("/v1/jobs", {"traceparent": f"00-{TRACE}-{OUTER}-01"}, json=body).json()["id"]
            with worker_process(settings):
                job = wait_for_end(api.database, job_id)
        assert job.status == JobStatus.SUCCEEDED, job.error
        spans = wait_for(lambda: collector.spans if collector.named("job attempt") else None, 20, "spans of the worker")
    mine = [(service, span) for service, span in spans if span.trace_id.hex() == TRACE]
    request = next(span for service, span in mine if service == "nupes-api" and span.name == "POST")
    attempt = next(span for service, span in mine if service == "nupes-worker" and span.name == "job attempt")
    stages = [span for _, span in mine if span.name in STAGES]
    assert request.parent_span_id.hex() == OUTER
    assert attempt.parent_span_id == request.span_id
    assert {span.name for span in stages} == STAGES
    assert {span.parent_span_id for span in stages} == {attempt.span_id}
    assert {a.key: a.value.string_value for a in attempt.attributes}["nupes.job_id"] == job_id
    lines = [line for line in worker_log(settings).splitlines() if "worker.runner ended" in line]
    assert lines
    assert all("job_id" in line and "attempt" in line for line in lines)


def test_without_a_collector_nothing_of_it_is_imported_or_kept(
    make_settings: Callable[..., Settings], sqlite_url: str
) -> None:
    with open_api(make_settings(database_url=sqlite_url)) as api:
        assert not tracing.is_on()
        made = api.post("/v1/jobs", {"traceparent": f"00-{TRACE}-{OUTER}-01"}, json=api.body())
        assert made.status_code == 202
        with tracing.span("nothing") as span:
            assert (span, tracing.traceparent()) == (None, None)
    # The bare API package, where it is installed, other libraries import on their own.
    code = "import sys, app.main, worker.main; print([n for n in sys.modules if n.startswith('opentelemetry.sdk')])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded.strip() == "[]"


def test_a_collector_that_is_gone_harms_no_request(make_settings: Callable[..., Settings], sqlite_url: str) -> None:
    with open_api(make_settings(database_url=sqlite_url, otlp_endpoint="http://127.0.0.1:9")) as api:
        assert tracing.is_on()
        assert api.post("/v1/jobs", json=api.body()).status_code == 202
    assert not tracing.is_on()
