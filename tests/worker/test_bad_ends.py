"""Models that nothing can be done with: how their jobs end, and that the worker takes the next one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from app.db.tables import JobEvent
from app.settings import Settings
from nupes_client.schemas.jobs import JobStatus
from tests.worker.factory import add_model, wait_for_end, worker_log, worker_process, write_tiny_llama
from tests.worker.test_worker import Bench

EVALUATION = {"metrics": ["fidelity"], "context": 16, "max_tokens": 64}


def not_a_number(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][3, 3] = np.nan
    save_file(tensors, model / "model.safetensors")


def no_layers(model: Path) -> None:
    save_file({"model.norm.weight": np.ones(64, np.float32)}, model / "model.safetensors")


def unknown_architecture(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "model_type": "brandnew"}))


ENDS: dict[str, Callable[[Path], None]] = {
    "numerics_nan": not_a_number,
    "no_quantizable_layers": no_layers,
    "unsupported_architecture": unknown_architecture,
}


@pytest.fixture
def bench(make_settings: Callable[..., Settings], sqlite_url: str, tmp_path: Path) -> Iterator[Bench]:
    settings = make_settings(database_url=sqlite_url, poll_s=0.5, sweep_s=0.5)
    bench = Bench(settings, write_tiny_llama(tmp_path / "good"))
    yield bench
    bench.database.dispose()


def test_each_bad_model_ends_its_job_with_a_reason_and_a_way_out_and_leaves_nothing(
    bench: Bench, tmp_path: Path
) -> None:
    jobs = {}
    for code, spoil in ENDS.items():
        spoil(model := write_tiny_llama(tmp_path / spoil.__name__))
        good, bench.model_id = bench.model_id, add_model(bench.database, bench.settings, bench.tenant_id, model)
        jobs[code] = bench.submit(spec={"evaluation": EVALUATION})
        bench.model_id = good
    with worker_process(bench.settings):
        for code, job_id in jobs.items():
            job = wait_for_end(bench.database, job_id)
            assert job.status == JobStatus.FAILED, code
            assert job.error is not None
            assert job.error["code"] == code, (job.error, worker_log(bench.settings))
            assert job.error["hint"]
            assert str(tmp_path) not in json.dumps(job.error)
            assert job.attempt == 1
            assert bench.children(job_id) == []
        job = wait_for_end(bench.database, bench.submit(spec={"evaluation": None}))
        assert job.status == JobStatus.SUCCEEDED, job.error


def test_a_disk_that_has_no_room_ends_the_job_before_the_work_after_another_try_later(
    make_settings: Callable[..., Settings], sqlite_url: str, tmp_path: Path
) -> None:
    bench = Bench(
        make_settings(database_url=sqlite_url, poll_s=0.1, min_free_disk_bytes=1 << 60, retry_pause_s=0.25),
        write_tiny_llama(tmp_path / "good"),
    )
    with worker_process(bench.settings):
        job = wait_for_end(bench.database, bench.submit(spec={"evaluation": None}))
    ends, starts = ([e.created_at for e in bench.events(job.id) if _moved_to(e, to)] for to in ("queued", "running"))
    bench.database.dispose()
    assert job.error is not None
    assert (job.status, job.error["code"], job.attempt) == (JobStatus.FAILED, "disk_full", 2)
    assert job.error["hint"]
    assert job.error["retryable"]
    assert (starts[1] - ends[1]).total_seconds() >= 2.0


def _moved_to(event: JobEvent, to: str) -> bool:
    return event.type == "status" and event.data["to"] == to
