"""Jobs that push their result, with real workers: what is computed is never lost, and a hub gets one commit."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from app.core.clock import now
from app.core.secret_key import load_pepper
from app.db.tables import Artifact, Job, Secret
from app.jobs import outcomes
from app.jobs.outcomes import PublishedFile
from app.jobs.service import cancel
from app.queue.outbox import deliver
from app.secrets.sealing import sealer
from app.settings import Settings
from app.storage import open_store
from nupes_client.schemas.jobs import JobStatus
from nupes_core.config import QuantizationConfig
from nupes_core.manifest import write_manifest
from nupes_core.report import Report
from tests.app.api import Api, open_api
from tests.app.jobrows import add_job, add_model, add_tenant, make_layer, make_result, read_job
from tests.app.test_problems import problem
from tests.hubserver import Fault, Hub, hub_server
from tests.worker.factory import wait_for, wait_for_end, worker_log, worker_process
from tests.worker.test_worker import Bench

TOKEN = "hf_teams_own_token"
REPO = "team/tiny-nupes"
PUSH = {"repo": REPO, "secret": "team"}
WEIGHTS = bytes(range(256)) * 100


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_server() as hub:
        hub.accounts = {TOKEN: {"team"}}
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub
        for fault in hub.faults:
            fault.release.set()


@pytest.fixture
def settings(make_settings: Callable[..., Settings], sqlite_url: str) -> Settings:
    return make_settings(database_url=sqlite_url, poll_s=0.3, sweep_s=0.3, retry_pause_s=0.1)


class Published(Bench):
    """A tenant with a token, and a queued job whose result is published and has to be pushed."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        from app.db.session import Database

        self.settings = settings
        self.database = Database(settings.resolved_database_url)
        self.tenant_id = add_tenant(self.database)
        self.model_id = add_model(self.database, self.tenant_id)
        with self.database.write() as session:
            sealed = sealer(load_pepper(settings)).seal(TOKEN)
            session.add(Secret(tenant_id=self.tenant_id, name="team", kind="hub_token", sealed=sealed))
        files = _artifact(settings, folder)

        def publish(session: Any, job: Job) -> None:
            outcomes.publish(session, job, None, make_result(), [make_layer()], files)

        spec = {"evaluation": None, "push_to_hub": PUSH}
        self.job_id = add_job(self.database, self.tenant_id, self.model_id, beside=publish, spec=spec)
        deliver(self.database, settings, self.job_id)

    def files(self) -> int:
        with self.database.read() as session:
            return session.query(Artifact).filter(Artifact.job_id == self.job_id).count()


def _artifact(settings: Settings, folder: Path) -> list[PublishedFile]:
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    report = Report((), 1000, 970, 1000, 300, 4.25, 97.0, 97.0, 0.5)
    write_manifest(folder, format_name="nupes", config=QuantizationConfig(), report=report, inputs={}, source=None)
    store, files = open_store(settings), []
    for path in sorted(folder.iterdir()):
        blob = store.put_file(path)
        files.append(PublishedFile("nupes", path.name, blob.size, blob.sha256, "application/octet-stream"))
    return files


@pytest.fixture
def published(settings: Settings, tmp_path: Path) -> Iterator[Published]:
    bench = Published(settings, tmp_path / "artifact")
    yield bench
    bench.database.dispose()


def hold(hub: Hub, where: str) -> Fault:
    """Carry a request out and keep its answer back."""
    fault = Fault(where, held=threading.Event())
    hub.faults.append(fault)
    return fault


def wait_for_hold(fault: Fault, bench: Published) -> None:
    assert fault.held is not None
    assert fault.held.wait(120), worker_log(bench.settings)


def test_a_worker_that_is_killed_after_its_commit_is_followed_by_one_that_commits_nothing(
    published: Published, hub: Hub
) -> None:
    fault = hold(hub, "POST .*/commit/")
    with worker_process(published.settings) as worker:
        wait_for_hold(fault, published)
        os.killpg(worker.pid, signal.SIGKILL)
    with published.database.write() as session:  # instead of waiting until it is over
        session.get_one(Job, published.job_id).lease_until = now() - timedelta(seconds=1)
    with worker_process(published.settings):
        job = wait_for_end(published.database, published.job_id)
    assert (job.status, job.attempt) == (JobStatus.SUCCEEDED, 2), (job.error, worker_log(published.settings))
    (commit,) = hub.repositories[REPO].commits
    assert job.pushed is not None
    assert (job.pushed["commit"], job.pushed["repo"]) == (commit.sha, REPO)
    assert commit.files["model.safetensors"] == WEIGHTS
    phases = [event.data["phase"] for event in published.events(job.id) if event.type == "phase"]
    assert set(phases) == {"pushing"}, "nothing was computed again"


def test_a_push_can_be_cancelled_and_the_files_stay(published: Published, hub: Hub) -> None:
    fault = hold(hub, "PUT /lfs/")
    with worker_process(published.settings):
        wait_for_hold(fault, published)
        with published.database.write() as session:
            cancel(session, published.tenant_id, published.job_id)
        job = wait_for_end(published.database, published.job_id)
        assert job.status == JobStatus.CANCELLED
        wait_for(lambda: not published.children(job.id), 30, "end of the child")
    assert hub.repositories[REPO].commits == []
    assert job.result is not None
    assert published.files() == 5


def put_secret(api: Api, value: str) -> None:
    assert api.post("/v1/secrets", json={"name": "team", "value": value}).status_code in {200, 201}


def test_after_a_wrong_token_a_retry_pushes_what_is_stored_though_the_hub_stumbles(
    settings: Settings, hub: Hub, tmp_path: Path
) -> None:
    with open_api(settings) as api:
        body = api.body(push_to_hub=PUSH)
        refused = problem(api.post("/v1/jobs", json=body), 422, "secret_not_found")
        assert [error.pointer for error in refused.errors or ()] == ["/push_to_hub/secret"]
        assert api.post("/v1/plans", json=body).status_code == 422
        put_secret(api, "hf_of_nobody")
        first = api.post("/v1/jobs", json=body).json()["id"]
        files = _artifact(settings, tmp_path / "artifact")
        with api.database.write() as session:
            outcomes.publish(session, session.get_one(Job, first), None, make_result(), [make_layer()], files)
        with worker_process(settings):
            failed = wait_for_end(api.database, first)
            assert (failed.status, failed.attempt) == (JobStatus.FAILED, 1)
            shown = api.get(f"/v1/jobs/{first}").json()
            assert (shown["error"]["code"], shown["error"]["phase"]) == ("push_denied", "pushing")
            assert "nupes retry" in shown["error"]["hint"]
            assert shown["result"]["bytes_after"] > 0
            listed = api.get(f"/v1/jobs/{first}/artifacts").json()["data"]
            assert api.get(listed[0]["content_url"]).status_code == 200
            put_secret(api, TOKEN)
            hub.faults = [Fault("GET /api/models", status=503), Fault("PUT /lfs/", status=500)]
            second = api.post(f"/v1/jobs/{first}/retry").json()["id"]
            job = wait_for_end(api.database, second)
        assert (job.status, job.attempt, job.cache_hit) == (JobStatus.SUCCEEDED, 2, True), job.error
        (commit,) = hub.repositories[REPO].commits
        pushed = api.get(f"/v1/jobs/{second}").json()["pushed"]
        assert pushed["commit"] == commit.sha
        assert len(api.get(f"/v1/jobs/{second}/artifacts").json()["data"]) == len(listed)
        for kind in ("markdown", "html"):
            report = api.get(f"/v1/jobs/{second}/report", params={"format": kind}).text
            assert pushed["commit_url"] in report.replace("\\", ""), kind
        assert api.get("/v1/secrets/team").json()["last_used_at"] is not None
        assert read_job(api.database, first).pushed is None
