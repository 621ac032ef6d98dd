"""Sharded jobs done by several real workers, some of which die: on both kinds of broker and database."""

from __future__ import annotations

import hashlib
import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.db.tables import Artifact, Job, JobShard, JobShardFile
from app.jobs import shards
from app.queue.outbox import deliver
from app.settings import Settings
from app.storage import open_store
from nupes_client.schemas.jobs import JobStatus, ShardStatus
from nupes_client.schemas.specs import JobSpec
from nupes_core.config import QuantizationConfig
from nupes_core.pipeline import quantize
from nupes_core.plan import plan_folder
from tests.app.jobrows import add_job
from tests.servers import s3_server
from tests.worker.factory import wait_for, wait_for_end, worker_log, worker_process, write_sharded_llama
from tests.worker.test_worker import Bench

SPEC = {"evaluation": None, "formats": ["nupes", "dense"]}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four files."""
    return write_sharded_llama(tmp_path_factory.mktemp("models") / "sharded", layers=3)


@pytest.fixture
def bench(stack_settings: Settings, model: Path) -> Iterator[Bench]:
    settings = stack_settings.model_copy(update={"sweep_s": 0.5, "poll_s": 0.5, "threads": 1})
    bench = Bench(Settings.model_validate(settings.model_dump(exclude_unset=True)), model)
    yield bench
    bench.database.dispose()


both_stacks = pytest.mark.parametrize(
    "stack_settings", ["embedded", pytest.param("production", marks=pytest.mark.slow)], indirect=True
)
"""The claims are tested on both databases in tests/app/test_shards.py; here whole workers are."""


def submit_sharded(bench: Bench, model: Path, first: ShardStatus = ShardStatus.QUEUED) -> str:
    """Queue a job with a row for each file, as the API does; the first file's row has the status `first`."""

    def add_files(session: Session, job: Job) -> None:
        shards.add(session, job, plan_folder(model, QuantizationConfig()).shards())
        session.get_one(JobShard, (job.id, 0)).status = first.value

    job_id = add_job(bench.database, bench.tenant_id, bench.model_id, spec=SPEC, beside=add_files)
    deliver(bench.database, bench.settings, job_id)
    return job_id


def rows(bench: Bench, job_id: str) -> list[JobShard]:
    with bench.database.read() as session:
        return list(shards.of_job(session, job_id))


def contents(bench: Bench, job_id: str) -> dict[str, bytes]:
    """Files of the artifacts, each checked against its checksum."""
    store, found = open_store(bench.settings), {}
    with bench.database.read() as session:
        for each in session.scalars(select(Artifact).where(Artifact.job_id == job_id)):
            found[f"{each.format}/{each.path}"] = b"".join(store.open(each.sha256))
            assert hashlib.sha256(found[f"{each.format}/{each.path}"]).hexdigest() == each.sha256
    return found


def assert_as_by_one_process(bench: Bench, job_id: str, model: Path, tmp_path: Path) -> None:
    """Weights, configuration and index are to the byte what one process writes."""
    spec = JobSpec.model_validate({"model": {"id": bench.model_id}, **SPEC})
    quantize(model, tmp_path / "whole", QuantizationConfig(), formats=list(spec.formats))
    got = contents(bench, job_id)
    for path in (tmp_path / "whole").rglob("*"):
        name = path.relative_to(tmp_path / "whole").as_posix()
        if path.suffix == ".safetensors" or path.name in {"config.json", "model.safetensors.index.json"}:
            assert got[name] == path.read_bytes(), name


def test_idle_workers_share_the_files_of_a_job_and_the_artifact_is_that_of_one_process(
    bench: Bench, model: Path, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(worker_process(bench.settings))
        wait_for(lambda: len(bench.workers()) == 2, 60, "both workers")
        job_id = submit_sharded(bench, model)
        job = wait_for_end(bench.database, job_id)
        assert job.status == JobStatus.SUCCEEDED, (job.error, worker_log(bench.settings))
        wait_for(lambda: not _files_left(bench), 30, "what the shards left to be let go")
    done = rows(bench, job_id)
    assert {row.status for row in done} == {ShardStatus.DONE}
    assert {row.attempt for row in done} == {1}
    assert len({row.worker_id for row in done}) == 2, "both took part"
    begun = [line for line in _plain_log(bench) if "file begins on" in line]
    assert len(begun) == len(done)
    assert all(f"job_id={job_id}" in line and " attempt=1 " in line for line in begun), begun
    assert_as_by_one_process(bench, job_id, model, tmp_path)
    events = bench.events(job_id)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    phases = [event.data["phase"] for event in events if event.type == "phase"]
    assert phases == ["fetching", "quantizing", "packaging", "verifying", "publishing"]
    fractions = [event.data["fraction"] for event in events if event.type == "progress"]
    assert fractions == sorted(fractions)


@both_stacks
def test_a_job_survives_the_death_of_a_helper_and_of_its_holder_and_repeats_no_finished_file(
    bench: Bench, model: Path, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        workers = [stack.enter_context(worker_process(bench.settings)) for _ in range(2)]
        wait_for(lambda: len(bench.workers()) == 2, 60, "both workers")
        job_id = submit_sharded(bench, model)
        wait_for(lambda: len(_done(bench, job_id)) >= 2, 120, "two files")
        holder = bench.job(job_id).lease_owner
        assert holder is not None
        before = _done(bench, job_id)
        for process in workers:  # the holder first or the helper first, both die within milliseconds
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        before |= _done(bench, job_id)
        stack.enter_context(worker_process(bench.settings))
        job = wait_for_end(bench.database, job_id)
    assert (job.status, job.attempt) == (JobStatus.SUCCEEDED, 2), (job.error, worker_log(bench.settings))
    after = {row.position: row.finished_at for row in rows(bench, job_id)}
    assert {position: after[position] for position in before} == before, "a finished file was done again"
    assert_as_by_one_process(bench, job_id, model, tmp_path)


@pytest.mark.slow
def test_workers_without_a_common_disk_share_the_files_of_a_job_through_a_bucket(
    make_settings: Callable[..., Settings],
    postgres_url: str,
    redis_url: str,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {"ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    with ExitStack() as stack:
        endpoint = stack.enter_context(s3_server())
        boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket="nupes")
        settings = make_settings(
            database_url=postgres_url,
            broker_url=redis_url,
            storage_url="s3://nupes/prefix",
            s3_endpoint_url=endpoint,
            poll_s=0.5,
            sweep_s=0.5,
            threads=1,
        )
        bench = Bench(settings, model)
        for name in ("here", "there"):
            (tmp_path / name).mkdir()
            own = settings.model_dump(exclude_unset=True) | {"data_dir": tmp_path / name}
            stack.enter_context(worker_process(Settings.model_validate(own)))
        wait_for(lambda: len(bench.workers()) == 2, 60, "both workers")
        job_id = submit_sharded(bench, model)
        job = wait_for_end(bench.database, job_id)
        assert job.status == JobStatus.SUCCEEDED, job.error
        assert len({row.worker_id for row in rows(bench, job_id)}) == 2, "both took part"
        assert_as_by_one_process(bench, job_id, model, tmp_path)
        bench.database.dispose()


def test_a_file_that_can_not_be_quantized_fails_the_job_with_its_name_and_reason(
    make_settings: Callable[..., Settings], sqlite_url: str, tmp_path: Path
) -> None:
    model = write_sharded_llama(tmp_path / "broken", layers=2)
    tensors = load_file(model / "model-00002.safetensors")
    next(tensor for tensor in tensors.values() if tensor.ndim == 2)[0, 0] = np.nan
    save_file(tensors, model / "model-00002.safetensors", {"format": "pt"})
    bench = Bench(make_settings(database_url=sqlite_url, poll_s=0.5, sweep_s=0.5, threads=1), model)
    with worker_process(bench.settings):
        bench.await_worker()
        # One file was begun by somebody who is gone: so the job is done file by file.
        job_id = submit_sharded(bench, model, first=ShardStatus.FAILED)
        job = wait_for_end(bench.database, job_id)
    bench.database.dispose()
    assert job.status == JobStatus.FAILED
    assert job.error is not None
    assert job.error["code"] == "numerics_nan"
    assert job.error["message"].startswith("model-00002.safetensors: ")


def _done(bench: Bench, job_id: str) -> dict[int, Any]:
    return {row.position: row.finished_at for row in rows(bench, job_id) if row.status == ShardStatus.DONE}


def _files_left(bench: Bench) -> list[JobShardFile]:
    with bench.database.read() as session:
        return list(session.scalars(select(JobShardFile)))


def _plain_log(bench: Bench) -> list[str]:
    return re.sub(r"\x1b\[[0-9;]*m", "", worker_log(bench.settings)).splitlines()
