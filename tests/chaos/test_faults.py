"""Faults that no other test does, each to a running service that is shared by all of them; then what the oracles say.

Others are tested in `tests/worker`, where their part is: killed runners and workers and a broker that is down in
`test_worker.py`, jumps of the clock in `test_claim_machine.py`, receivers of webhooks in `test_courier.py`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import psutil
import pytest

from app.db.tables import Job
from nupes_client.schemas.jobs import JobPhase, JobStatus
from tests.chaos import faults
from tests.chaos.oracles import ORACLES, deliver_what_waits, processes_marked
from tests.chaos.soak import backend, soak
from tests.chaos.system import CHILDREN, PATIENCE_S, System, running_system
from tests.worker.factory import wait_for

pytestmark = pytest.mark.timeout(2400)

SELECTION = ("kill_slot", "kill_worker_and_its_reaper", "restart_broker", "flush_broker", "repeat_messages")
"""For the short soak: what is not done to the embedded service, and what needs a broker of its own."""

TRIES = 10
MOMENT_S = 0.02
LEARNING = {
    "optimize": {"mode": "data_driven", "steps": 20},
    "calibration": {"samples": 8, "length": 32},
    "evaluation": {"metrics": ["fidelity"], "context": 16, "max_tokens": 64},
}
WISHES: dict[JobPhase, dict[str, Any]] = {
    JobPhase.VALIDATING: LEARNING,
    JobPhase.PLANNING: {},
    JobPhase.CALIBRATING: LEARNING,
    JobPhase.QUANTIZING: LEARNING,
    JobPhase.EVALUATING: LEARNING,
    JobPhase.PACKAGING: LEARNING,
}
"""Phases of the one process that computes, each with a wish that leads through it."""


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """The embedded service; at the end every oracle is asked, and nothing of it runs any more."""
    folder = tmp_path_factory.mktemp("chaos")
    with (
        backend("sqlite", folder) as (settings, broker),
        running_system(settings, broker, folder) as system,
    ):
        yield system
        system.await_end()
        deliver_what_waits(system)
        assert [problem for oracle in ORACLES for problem in oracle(system)] == []
    assert processes_marked(settings.data_dir) == []


def _ends_well(system: System, job_id: str) -> Job:
    job = system.await_end_of(job_id)
    assert job.status == JobStatus.SUCCEEDED, (job.error, system.stack.log.read_text()[-4000:])
    return job


def test_a_worker_that_was_stopped_past_its_lease_wakes_up_and_changes_nothing(system: System) -> None:
    job_id = system.submit("stopped")
    assert faults.stop_worker(system, Random(1)).startswith("stopped the worker of stopped in attempt")
    assert _ends_well(system, job_id).attempt >= 2


@pytest.mark.parametrize("fault", [faults.kill_api_before_commit, faults.kill_api_after_commit])
def test_a_job_is_made_once_though_the_service_dies_as_it_is_sent(system: System, fault: faults.Fault) -> None:
    before = set(system.accepted)
    fault(system, Random(1))
    (name,) = system.accepted.keys() - before
    again = system.insist(lambda: system.client.jobs.get(system.accepted[name]))
    assert again.name == name
    system.insist(lambda: system.client.jobs.cancel(again.id))
    assert system.await_end_of(again.id).status == JobStatus.CANCELLED


def test_a_job_outlives_a_database_that_is_locked_for_ten_seconds_and_wake_ups_nobody_needs(system: System) -> None:
    job_id = system.submit("locked")
    wait_for(lambda: system.children(job_id), PATIENCE_S, "begin of the work")
    faults.repeat_messages(system, Random(1))
    faults.lock_database(system, Random(1))
    faults.repeat_messages(system, Random(2))
    _ends_well(system, job_id)


def test_a_job_outlives_a_full_disk(system: System) -> None:
    if not system.disk_can_fill:
        pytest.skip("this user may not mount a small disk")
    job_id = system.submit("full")
    wait_for(lambda: system.children(job_id), PATIENCE_S, "begin of the work")
    faults.fill_disk(system, Random(1))
    _ends_well(system, job_id)


def test_a_job_outlives_a_hub_that_asks_for_patience_fails_and_hangs_up_in_the_middle_of_a_file(system: System) -> None:
    hub = system.hub
    hub.status, hub.failures = 429, 1
    job_id = system.submit("hub", model="hub")
    wait_for(lambda: hub.status is None, PATIENCE_S, "a request that was told to wait")
    hub.failures, hub.status = 1, 500
    wait_for(lambda: hub.status is None, PATIENCE_S, "a request that failed")
    hub.cut_bodies = True
    wait_for(lambda: hub.bodies_cut, PATIENCE_S, "a file that was cut")
    hub.cut_bodies = False
    _ends_well(system, job_id)


@pytest.mark.parametrize("module", CHILDREN)
def test_a_job_is_cancelled_whatever_is_done_for_it_though_it_hangs(system: System, module: str) -> None:
    job_id = _hanging(system, module)
    system.insist(lambda: system.client.jobs.cancel(job_id))
    assert system.await_end_of(job_id).status == JobStatus.CANCELLED
    wait_for(lambda: not system.children(job_id), PATIENCE_S, "end of its processes")


def _hanging(system: System, module: str) -> str:
    """A job whose child of that kind was stopped; the child may be faster than we are, then another job is tried."""
    for number in range(TRIES):
        job_id = system.submit(f"hanging-{module}-{number}")
        while not _ended(system, job_id):
            if _stopped(system, job_id, module):
                return job_id
    raise AssertionError(f"{module} was never caught")


def _stopped(system: System, job_id: str, module: str) -> psutil.Process | None:
    for child in system.children(job_id):
        with suppress(psutil.Error):
            if module in child.cmdline():
                child.suspend()
                return child if child.status() == psutil.STATUS_STOPPED else None
    return None


def _ended(system: System, job_id: str) -> bool:
    return JobStatus(system.job(job_id).status).is_terminal


@pytest.mark.slow
@pytest.mark.parametrize("phase", WISHES)
def test_a_job_is_cancelled_in_every_phase_of_its_work(system: System, phase: JobPhase) -> None:
    job_id = _caught_in(system, phase)
    system.insist(lambda: system.client.jobs.cancel(job_id))
    ended = system.await_end_of(job_id)
    assert (ended.status, ended.phase) == (JobStatus.CANCELLED, phase)
    wait_for(lambda: not system.children(job_id), PATIENCE_S, "end of its processes")


def _caught_in(system: System, phase: JobPhase) -> str:
    """A job whose runner was let run for moments only, until it said that it is in that phase."""
    for number in range(TRIES):
        job_id = system.submit(f"{phase}-{number}", model="llama", **WISHES[phase])
        runner: psutil.Process | None = None
        while not _ended(system, job_id):
            runner = runner or _stopped(system, job_id, "worker.runner")
            if runner is None:
                continue
            if system.job(job_id).phase == phase:
                return job_id
            _let_run(runner)
    raise AssertionError(f"no job was caught {phase}")


def _let_run(process: psutil.Process) -> None:
    """For a moment; and then it takes another until what it said is in the database."""
    with suppress(psutil.NoSuchProcess):
        process.resume()
        time.sleep(MOMENT_S)
        process.suspend()
        time.sleep(MOMENT_S)


def test_a_short_soak_of_postgresql_and_redis_leaves_nothing_to_object_to(tmp_path: Path) -> None:
    lines: list[str] = []
    with (
        backend("postgres", tmp_path) as (settings, broker),
        running_system(settings, broker, tmp_path) as system,
    ):
        done = soak(system, 3, seed=1, say=lines.append, kinds=SELECTION, most=len(SELECTION))
        deliver_what_waits(system)
        assert done, lines
        assert [problem for oracle in ORACLES for problem in oracle(system)] == [], lines
    assert processes_marked(settings.data_dir) == []
