"""Real workers on real jobs, embedded (SQLite + folders) and in production wiring (PostgreSQL + Redis)."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import select

from app.core.clock import now
from app.db.session import Database
from app.db.tables import Artifact, Job, JobEvent, JobLayer, Worker
from app.jobs.metrics import read_metrics
from app.jobs.service import cancel
from app.queue.outbox import deliver
from app.settings import Settings
from app.storage import open_store
from nupes_client.schemas.jobs import JobStatus
from tests.app.jobrows import add_job, add_tenant, read_job
from tests.servers import free_port
from tests.worker.factory import (
    add_model,
    add_text,
    stop,
    wait_for,
    wait_for_end,
    worker_log,
    worker_process,
    write_tiny_llama,
)
from worker.isolation import isolation
from worker.workfolder import job_home

STARTED_S = 30
LONG_TEXT = "It was the best of times, it was the worst of times. " * 40_000
BUSY = {"metrics": ["perplexity"], "max_tokens": 1_000_000}
"""An evaluation that takes minutes."""


class Bench:
    """A database with a tenant and a stored model, on the settings of a lane."""

    def __init__(self, settings: Settings, model: Path) -> None:
        self.settings = settings
        self.database = Database(settings.resolved_database_url)
        self.tenant_id = add_tenant(self.database)
        self.model_id = add_model(self.database, settings, self.tenant_id, model)

    def submit(self, **columns: object) -> str:
        """Queue a job and publish its wake-up, as the API does."""
        job_id = add_job(self.database, self.tenant_id, self.model_id, **columns)
        deliver(self.database, self.settings, job_id)
        return job_id

    def submit_busy(self, **columns: object) -> str:
        """Queue a job that runs for minutes."""
        text = add_text(self.database, self.settings, self.tenant_id, LONG_TEXT)
        return self.submit(spec={"evaluation": {**BUSY, "text": {"upload_id": text}}}, **columns)

    def job(self, job_id: str) -> Job:
        return read_job(self.database, job_id)

    def wait_for_phase(self, job_id: str, phase: str) -> int:
        """Wait until a child works on the phase; return its pid."""

        def working() -> bool:
            job = self.job(job_id)
            assert not JobStatus(job.status).is_terminal, job.error
            return job.phase == phase and job.status == JobStatus.RUNNING

        wait_for(working, 200, phase)
        return self.children(job_id, "worker.runner")[0].pid

    def wait_for_runner(self, job_id: str) -> psutil.Process:
        """Wait until the process that computes has started."""
        runner: psutil.Process = wait_for(lambda: self.children(job_id, "worker.runner"), 90, "start of the runner")[0]
        return runner

    def children(self, job_id: str, module: str = "-m") -> list[psutil.Process]:
        """Processes that work in the job's folder."""
        folder = str(job_home(self.settings.work_dir, job_id))
        found = []
        for process in psutil.process_iter():
            try:
                command = process.cmdline()
                mine = module in command and any(word.startswith(folder) for word in command)
                if mine and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def events(self, job_id: str) -> list[JobEvent]:
        with self.database.read() as session:
            statement = select(JobEvent).where(JobEvent.job_id == job_id).order_by(JobEvent.seq)
            return list(session.scalars(statement))

    def curves(self, job_id: str) -> dict[str, list[float | None]]:
        """The values of each curve, by step."""
        with self.database.read() as session:
            found = read_metrics(session, job_id, [], 10_000).data
        return {series.name: [point.value for point in series.points] for series in found}

    def workers(self) -> list[Worker]:
        with self.database.read() as session:
            return list(session.scalars(select(Worker)))

    def await_worker(self) -> Worker:
        worker: Worker = wait_for(self.workers, STARTED_S, "heartbeat")[0]
        return worker


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def bench(stack_settings: Settings, tiny: Path) -> Iterator[Bench]:
    settings = stack_settings.model_copy(update={"sweep_s": 1.0, "poll_s": 1.0})
    bench = Bench(Settings.model_validate(settings.model_dump(exclude_unset=True)), tiny)
    yield bench
    bench.database.dispose()


@pytest.fixture
def embedded(make_settings: object, sqlite_url: str, tiny: Path) -> Iterator[Bench]:
    bench = Bench(make_settings(database_url=sqlite_url, sweep_s=1.0, poll_s=1.0), tiny)
    yield bench
    bench.database.dispose()


def _read(bench: Bench, artifact: Artifact) -> bytes:
    return b"".join(open_store(bench.settings).open(artifact.sha256))


def test_a_job_is_claimed_within_half_a_second_quantized_measured_verified_and_published(bench: Bench) -> None:
    with worker_process(bench.settings):
        bench.await_worker()
        text = add_text(bench.database, bench.settings, bench.tenant_id)
        evaluation = {"metrics": ["fidelity", "perplexity"], "text": {"upload_id": text}, "context": 64}
        job_id = bench.submit(spec={"evaluation": evaluation, "formats": ["nupes", "dense"]})
        job = wait_for_end(bench.database, job_id)
        assert job.status == JobStatus.SUCCEEDED, (job.error, worker_log(bench.settings))
    claimed = next(event for event in bench.events(job_id) if event.data.get("to") == "running")
    assert (claimed.created_at - job.created_at).total_seconds() < 0.5
    assert job.result is not None
    assert job.result["bytes_after"] < job.result["bytes_before"]
    assert job.result["metrics"]["quantized"]["kl"] > 0
    assert job.result["metrics"]["baseline"]["perplexity"] > 1
    phases = [event.data["phase"] for event in bench.events(job_id) if event.type == "phase"]
    expected = "fetching validating planning quantizing evaluating packaging verifying publishing"
    assert phases == expected.split()
    fractions = [event.data["fraction"] for event in bench.events(job_id) if event.type == "progress"]
    assert fractions == sorted(fractions)
    _assert_published(bench, job_id)


def learn(bench: Bench, steps: int) -> dict[str, Any]:
    """The wish of a job that learns codes on a text."""
    text = add_text(bench.database, bench.settings, bench.tenant_id)
    return {
        "optimize": {"mode": "data_driven", "steps": steps},
        "calibration": {"text": {"upload_id": text}, "samples": 16, "length": 32},
        "activations": {"bits": 8},
        "evaluation": None,
    }


def test_a_data_driven_job_learns_codes_on_the_text_and_shows_its_curves(bench: Bench) -> None:
    with worker_process(bench.settings):
        job_id = bench.submit(spec=learn(bench, steps=6))
        job = wait_for_end(bench.database, job_id)
    assert job.status == JobStatus.SUCCEEDED, (job.error, worker_log(bench.settings))
    phases = [event.data["phase"] for event in bench.events(job_id) if event.type == "phase"]
    assert phases == ["fetching", "validating", "calibrating", "quantizing", "packaging", "verifying", "publishing"]
    fractions = [event.data["fraction"] for event in bench.events(job_id) if event.type == "progress"]
    assert fractions == sorted(fractions)
    curves = bench.curves(job_id)
    for block in ("model.layers.0", "model.layers.1"):
        assert len(curves[f"loss/{block}"]) == 6
    with bench.database.read() as session:
        layers = [row.data for row in session.scalars(select(JobLayer).where(JobLayer.job_id == job_id))]
    learnt = [layer for layer in layers if layer["bits"] == 4]
    assert len(learnt) == 14
    assert {layer["activation_bits"] for layer in learnt} == {8}
    assert sum(layer["codes_moved"] for layer in learnt) > 0


def test_a_second_attempt_goes_on_behind_the_finished_block_and_has_each_point_once(embedded: Bench) -> None:
    with worker_process(embedded.settings):
        job_id = embedded.submit(spec=learn(embedded, steps=150))
        wait_for(lambda: "loss/model.layers.0" in embedded.curves(job_id), 90, "first block")
        embedded.wait_for_runner(job_id).kill()
        wait_for(lambda: embedded.job(job_id).attempt == 2, 20, "second attempt")
        before = embedded.curves(job_id)["loss/model.layers.0"]
        job = wait_for_end(embedded.database, job_id)
    assert (job.status, job.attempt) == (JobStatus.SUCCEEDED, 2), job.error
    curves = embedded.curves(job_id)
    assert curves["loss/model.layers.0"] == before
    assert [len(curves[f"loss/model.layers.{block}"]) for block in range(2)] == [150, 150]


def _assert_published(bench: Bench, job_id: str) -> None:
    with bench.database.read() as session:
        artifacts = list(session.scalars(select(Artifact).where(Artifact.job_id == job_id)))
        layers = list(session.scalars(select(JobLayer).where(JobLayer.job_id == job_id)))
    assert sum(layer.data["bits"] == 4 for layer in layers) == 14
    for name in ("nupes", "dense"):
        files = {artifact.path: artifact for artifact in artifacts if artifact.format == name}
        sums = dict(reversed(line.split("  ")) for line in _read(bench, files["SHA256SUMS"]).decode().splitlines())
        assert sums == {path: artifact.sha256 for path, artifact in files.items() if path != "SHA256SUMS"}
        assert hashlib.sha256(_read(bench, files["model.safetensors"])).hexdigest() == sums["model.safetensors"]
        assert json.loads(_read(bench, files["manifest.json"]))["metrics"]["quantized"]["kl"] > 0


def test_a_job_whose_equal_ended_while_it_waited_is_not_computed_again(bench: Bench) -> None:
    jobs = [bench.submit(cache_key="e" * 64) for _ in range(2)]
    with worker_process(bench.settings):
        ended = [wait_for_end(bench.database, job_id) for job_id in jobs]
    assert {job.status for job in ended} == {JobStatus.SUCCEEDED}
    assert sorted(job.cache_hit for job in ended) == [False, True]
    assert ended[0].result == ended[1].result
    with bench.database.read() as session:
        files = [set(session.scalars(select(Artifact.sha256).where(Artifact.job_id == job_id))) for job_id in jobs]
    assert files[0] == files[1] != set()


def test_a_running_job_is_cancelled_within_five_seconds_and_leaves_no_process(bench: Bench) -> None:
    with worker_process(bench.settings):
        job_id = bench.submit_busy()
        bench.wait_for_phase(job_id, "evaluating")
        with bench.database.write() as session:
            cancel(session, bench.tenant_id, job_id)
        asked = now()
        job = wait_for_end(bench.database, job_id, 10)
        assert job.status == JobStatus.CANCELLED
        assert job.finished_at is not None
        assert (job.finished_at - asked).total_seconds() < 5
        assert bench.children(job_id) == []
        folder = job_home(bench.settings.work_dir, job_id)
        wait_for(lambda: not folder.exists(), 10, "removal of the work folder")


def test_a_job_whose_runner_is_killed_resumes_from_its_committed_tensors(bench: Bench) -> None:
    with worker_process(bench.settings):
        job_id = bench.submit_busy()
        runner = bench.wait_for_phase(job_id, "evaluating")
        assert bench.workers()[0].isolation == isolation()
        outside = Path("/proc/self/ns/net").readlink()
        assert (Path(f"/proc/{runner}/ns/net").readlink() == outside) == (isolation() == "environment")
        pieces = job_home(bench.settings.work_dir, job_id) / "pieces"
        before = {path.name: path.stat().st_mtime_ns for path in pieces.rglob("*.safetensors")}
        assert len(before) == 14
        os.kill(runner, signal.SIGKILL)
        wait_for(lambda: bench.job(job_id).attempt == 2, 20, "second attempt")
        again = bench.wait_for_phase(job_id, "evaluating")
        assert again != runner
        assert {path.name: path.stat().st_mtime_ns for path in pieces.rglob("*.safetensors")} == before
        os.kill(again, signal.SIGKILL)
        job = wait_for_end(bench.database, job_id, 20)
    assert (job.status, job.error["code"] if job.error else None) == (JobStatus.FAILED, "oom_host")


def test_a_job_succeeds_in_its_second_attempt_after_the_runner_was_killed(embedded: Bench) -> None:
    with worker_process(embedded.settings):
        job_id = embedded.submit(spec={"evaluation": {"metrics": ["fidelity"], "max_tokens": 256, "context": 64}})
        embedded.wait_for_runner(job_id).kill()
        job = wait_for_end(embedded.database, job_id)
    assert (job.status, job.attempt) == (JobStatus.SUCCEEDED, 2), job.error


def test_a_job_runs_while_the_broker_is_down(embedded: Bench) -> None:
    url = f"redis://127.0.0.1:{free_port()}/0"
    embedded.settings = embedded.settings.model_copy(update={"broker_url": url})
    embedded.settings = Settings.model_validate(embedded.settings.model_dump(exclude_unset=True) | {"broker_url": url})
    with worker_process(embedded.settings):
        job = wait_for_end(embedded.database, embedded.submit(spec={"evaluation": None}))
    assert job.status == JobStatus.SUCCEEDED, job.error


def test_a_stopped_worker_gives_its_job_back_without_burning_an_attempt(bench: Bench) -> None:
    with worker_process(bench.settings) as process:
        job_id = bench.submit_busy()
        bench.wait_for_runner(job_id)
        started = time.monotonic()
        stop(process)
        assert time.monotonic() - started < 10
    job = bench.job(job_id)
    assert (job.status, job.attempt, job.lease_owner) == (JobStatus.QUEUED, 0, None)
    assert bench.children(job_id) == []
    assert bench.workers() == []


def test_the_job_of_a_killed_worker_is_taken_over_at_once_on_the_same_machine(embedded: Bench) -> None:
    with worker_process(embedded.settings) as first:
        job_id = embedded.submit_busy()
        embedded.wait_for_runner(job_id)
        first.kill()
        first.wait()
        wait_for(lambda: not embedded.children(job_id), 5, "end of the orphaned runner")
    with worker_process(embedded.settings):
        wait_for(lambda: embedded.job(job_id).attempt == 2, 30, "takeover")


def test_a_job_that_runs_too_long_fails_with_timeout(embedded: Bench) -> None:
    with worker_process(embedded.settings):
        job = wait_for_end(embedded.database, embedded.submit_busy(timeout_s=5), 60)
    assert job.error is not None
    assert (job.status, job.error["code"]) == (JobStatus.FAILED, "timeout")
    assert embedded.children(job.id) == []


def test_an_idle_worker_is_cheap_and_loads_no_torch(embedded: Bench) -> None:
    with worker_process(embedded.settings) as process:
        embedded.await_worker()
        time.sleep(1)
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        used = _cpu_seconds(family)
        time.sleep(4)
        assert (_cpu_seconds(family) - used) / 4 < 0.05
        for each in family:
            assert not any("libtorch" in mapped.path for mapped in each.memory_maps())


def _cpu_seconds(family: list[psutil.Process]) -> float:
    return sum(each.cpu_times().user + each.cpu_times().system for each in family)


def test_a_worker_told_to_end_finishes_its_job_when_that_takes_no_longer_than_the_grace_time(bench: Bench) -> None:
    patient = bench.settings.model_copy(update={"drain_grace_s": 120.0})
    with worker_process(Settings.model_validate(patient.model_dump(exclude_unset=True))) as process:
        job_id = bench.submit(spec={"evaluation": None})
        wait_for(lambda: bench.job(job_id).status == JobStatus.RUNNING, STARTED_S, "claim")
        process.terminate()
        wait_for(lambda: [each for each in bench.workers() if each.draining], 10, "the worker says that it drains")
        later = bench.submit(spec={"evaluation": None})
        process.wait(120)
    job = bench.job(job_id)
    assert (job.status, job.attempt) == (JobStatus.SUCCEEDED, 1), (job.error, worker_log(bench.settings))
    assert (bench.job(later).status, bench.job(later).attempt) == (JobStatus.QUEUED, 0)
    assert bench.workers() == []


@pytest.mark.parametrize("taken", ["by message", "by look at the table"])
def test_a_worker_whose_whole_group_is_told_to_end_gives_its_job_back_at_once_whatever_the_grace_time(
    embedded: Bench, taken: str
) -> None:
    changes: dict[str, object] = {"drain_grace_s": 300.0}
    if taken == "by look at the table":  # in a thread, while the main one would wait
        changes["broker_url"] = f"redis://127.0.0.1:{free_port()}/0"
    embedded.settings = Settings.model_validate(embedded.settings.model_dump(exclude_unset=True) | changes)
    with worker_process(embedded.settings) as process:
        job_id = embedded.submit_busy()
        embedded.wait_for_runner(job_id)
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)
    job = embedded.job(job_id)
    assert (job.status, job.attempt, job.lease_owner) == (JobStatus.QUEUED, 0, None), worker_log(embedded.settings)
    assert embedded.children(job_id) == []
    assert embedded.workers() == []
