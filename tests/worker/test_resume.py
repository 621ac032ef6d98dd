"""How much of its work a job repeats whose process is killed at 80 %: counted in what it had committed."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from app.settings import Settings
from nupes_client.schemas.jobs import JobStatus
from tests.worker.factory import wait_for, wait_for_end, worker_log, worker_process, write_tiny_llama
from tests.worker.test_worker import Bench, learn
from worker.workfolder import job_home

KILL_AT = 0.8
LAYERS = 5
MATRICES = 7 * LAYERS


@dataclass(frozen=True)
class Repeated:
    """Committed pieces: all, those there when the process was killed, and those written after that."""

    total: int
    before: int
    after: int

    @property
    def share(self) -> float:
        return self.after / self.total


@pytest.fixture
def bench(
    request: pytest.FixtureRequest, make_settings: Callable[..., Settings], sqlite_url: str, tmp_path: Path
) -> Iterator[Bench]:
    model = write_tiny_llama(tmp_path / "model", layers=LAYERS, hidden=request.param)
    # Work folders are removed by the sweep: it must not come before they were looked at.
    bench = Bench(make_settings(database_url=sqlite_url, sweep_s=3600, threads=1), model)
    yield bench
    bench.database.dispose()


def _pieces(bench: Bench, job_id: str) -> dict[str, int]:
    """Committed pieces and when they were written."""
    found = (job_home(bench.settings.work_dir, job_id) / "pieces").rglob("*.safetensors")
    return {path.name: path.stat().st_mtime_ns for path in found}


def _kill_and_finish(bench: Bench, job_id: str, total: int) -> Repeated:
    """Kill the runner once 80 % of the pieces are committed; wait for the end of the second attempt."""
    wait_for(lambda: len(_pieces(bench, job_id)) >= KILL_AT * total, 200, "80 % of the work")
    bench.children(job_id, "worker.runner")[0].send_signal(signal.SIGKILL)
    before = _pieces(bench, job_id)
    job = wait_for_end(bench.database, job_id)
    assert (job.status, job.attempt) == (JobStatus.SUCCEEDED, 2), (job.error, worker_log(bench.settings))
    after = _pieces(bench, job_id)
    assert before.items() <= after.items(), "a committed piece was written again"
    assert len(after) == total
    return Repeated(total, len(before), total - len(before))


@pytest.mark.parametrize("bench", [512], indirect=True)
def test_a_data_free_job_killed_at_80_percent_does_less_than_a_quarter_of_its_matrices_again(bench: Bench) -> None:
    with worker_process(bench.settings):
        repeated = _kill_and_finish(bench, bench.submit(spec={"evaluation": None}), MATRICES)
    print(f"matrices: {repeated}")
    assert repeated.share < 0.25


@pytest.mark.parametrize("bench", [64], indirect=True)
def test_a_job_on_data_killed_at_80_percent_does_less_than_a_quarter_of_its_blocks_again(bench: Bench) -> None:
    with worker_process(bench.settings):
        job_id = bench.submit(spec=learn(bench, steps=40))
        repeated = _kill_and_finish(bench, job_id, LAYERS)
    print(f"blocks: {repeated}")
    assert repeated.share < 0.25
    curves = bench.curves(job_id)
    assert [len(curves[f"loss/model.layers.{block}"]) for block in range(LAYERS)] == [40] * LAYERS
