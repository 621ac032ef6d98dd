"""Any sequence of claims, renewals, reports, ends, cancellations, reaping and jumps of the clock, against a model.

The model says what each statement must do: at most one holder, attempts only grow, a fence that was overtaken writes
nothing, an ended job stays as it is, events are numbered without gaps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule, run_state_machine_as_test
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from app.core.clock import now
from app.db.session import Database
from app.db.tables import Job, JobEvent
from app.jobs import transitions
from app.jobs.outcomes import enter_phase, fail, finish_cancel, requeue, succeed
from app.jobs.service import cancel
from app.jobs.transitions import Fence, IllegalTransitionError, StaleFenceError, claim, renew
from app.settings import Settings
from nupes_client.schemas.jobs import JobError, JobPhase, JobStatus
from nupes_client.schemas.problems import JobErrorCode
from tests.app.jobrows import add_job, add_model, add_tenant, make_result
from worker import claims, reaper, turns

LEASE_S = 60.0
WORKERS = ("a", "b", "c")
HELD = {JobStatus.RUNNING, JobStatus.CANCELLING}
EXAMPLES, STEPS = 10, 30


@dataclass
class Known:
    """What a job must be."""

    max_attempts: int
    status: JobStatus = JobStatus.QUEUED
    attempt: int = 0
    holder: Fence | None = None
    lease_until: datetime | None = None

    def claimable(self, moment: datetime) -> bool:
        abandoned = self.status is JobStatus.RUNNING and self.expired(moment)
        return (self.status is JobStatus.QUEUED or abandoned) and self.attempt < self.max_attempts

    def expired(self, moment: datetime) -> bool:
        return self.lease_until is not None and self.lease_until < moment

    def held_by(self, fence: Fence) -> bool:
        return self.status in HELD and self.holder == fence

    def release(self, to: JobStatus) -> None:
        self.status, self.holder, self.lease_until = to, None, None


@dataclass
class World:
    """What outlives an example: the database, a tenant, and the clock that all modules read."""

    database: Database
    settings: Settings
    tenant_id: str
    model_id: str
    ahead: timedelta = field(default_factory=timedelta)

    def now(self) -> datetime:
        return now() + self.ahead


def _succeed(session: Session, job: Job, fence: Fence) -> None:
    succeed(session, job, fence, make_result(), [], [])


def _fail(session: Session, job: Job, fence: Fence) -> None:
    fail(session, job, fence, JobError(code=JobErrorCode.INTERNAL, message="m", retryable=False))


def _requeue(session: Session, job: Job, fence: Fence) -> None:
    requeue(session, job, fence, reason="r")


ENDS: dict[JobStatus, tuple[Callable[[Session, Job, Fence], None], set[JobStatus]]] = {
    JobStatus.SUCCEEDED: (_succeed, HELD),
    JobStatus.FAILED: (_fail, HELD),
    JobStatus.QUEUED: (_requeue, {JobStatus.RUNNING}),
    JobStatus.CANCELLED: (finish_cancel, {JobStatus.CANCELLING}),
}
"""How a holder lets go of a job, and in which status it may."""


class Claims(RuleBasedStateMachine):
    """Rules are what processes do, in any order; `fences` holds every fence that was ever given out."""

    jobs: Bundle[str] = Bundle("jobs")
    fences: Bundle[tuple[str, Fence]] = Bundle("fences")

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.known: dict[str, Known] = {}

    def teardown(self) -> None:
        with self.world.database.write() as session:
            session.execute(delete(JobEvent))
            session.execute(delete(Job))

    @rule(target=jobs, max_attempts=st.integers(1, 3))
    def submit(self, max_attempts: int) -> str:
        world = self.world
        job_id = add_job(world.database, world.tenant_id, world.model_id, max_attempts=max_attempts)
        self.known[job_id] = Known(max_attempts)
        return job_id

    @rule(seconds=st.sampled_from([-7200, -61, -1, 1, 30, 61, 7200]))
    def the_clock_moves(self, seconds: int) -> None:
        self.world.ahead += timedelta(seconds=seconds)

    @rule(target=fences, job_id=jobs, owner=st.sampled_from(WORKERS))
    def reach_for(self, job_id: str, owner: str) -> object:
        known, moment = self.known[job_id], self.world.now()
        with self.world.database.write() as session:
            fence = claim(session, job_id, owner, LEASE_S)
        assert (fence is not None) == known.claimable(moment)
        return self._taken(job_id, fence)

    @rule(target=fences, owner=st.sampled_from(WORKERS))
    def take_whose_turn_it_is(self, owner: str) -> object:
        moment = self.world.now()
        free = {job_id for job_id, known in self.known.items() if known.claimable(moment)}
        taken = claims.claim_next(self.world.database, self.world.settings, owner)
        assert (taken is not None) == bool(free)
        if taken is None:
            return multiple()
        assert taken.job_id in free
        return self._taken(taken.job_id, taken.fence)

    def _taken(self, job_id: str, fence: Fence | None) -> object:
        if fence is None:
            return multiple()
        known = self.known[job_id]
        assert fence.attempt == known.attempt + 1
        known.status, known.attempt, known.holder = JobStatus.RUNNING, fence.attempt, fence
        known.lease_until = self._job(job_id).lease_until
        return job_id, fence

    @rule(held=fences)
    def renew(self, held: tuple[str, Fence]) -> None:
        job_id, fence = held
        known = self.known[job_id]
        with self.world.database.write() as session:
            assert renew(session, job_id, fence, LEASE_S) == known.held_by(fence)
        if known.held_by(fence):
            known.lease_until = self._job(job_id).lease_until

    @rule(held=fences)
    def report(self, held: tuple[str, Fence]) -> None:
        job_id, fence = held

        def write(session: Session, job: Job, fence: Fence) -> None:
            enter_phase(session, job, fence, JobPhase.QUANTIZING)

        assert self._write(job_id, fence, write) == self.known[job_id].held_by(fence)

    @rule(held=fences, to=st.sampled_from(sorted(ENDS)))
    def let_go(self, held: tuple[str, Fence], to: JobStatus) -> None:
        job_id, fence = held
        known = self.known[job_id]
        act, permitted = ENDS[to]
        written = self._write(job_id, fence, act)
        assert written == (known.held_by(fence) and known.status in permitted)
        if written:
            known.release(to)

    def _write(self, job_id: str, fence: Fence, act: Callable[[Session, Job, Fence], None]) -> bool:
        try:
            with self.world.database.write() as session:
                act(session, session.get_one(Job, job_id), fence)
        except (StaleFenceError, IllegalTransitionError):
            return False
        return True

    @rule(job_id=jobs)
    def cancel(self, job_id: str) -> None:
        known = self.known[job_id]
        with self.world.database.write() as session:
            cancel(session, self.world.tenant_id, job_id)
        if known.status is JobStatus.QUEUED:
            known.release(JobStatus.CANCELLED)
        elif known.status is JobStatus.RUNNING:
            known.status = JobStatus.CANCELLING

    @rule()
    def reap(self) -> None:
        moment = self.world.now()
        abandoned = {
            job_id: known for job_id, known in self.known.items() if known.status in HELD and known.expired(moment)
        }
        assert set(reaper.reap(self.world.database)) == set(abandoned)
        for known in abandoned.values():
            if known.status is JobStatus.CANCELLING:
                known.release(JobStatus.CANCELLED)
            else:
                left = known.attempt < known.max_attempts
                known.release(JobStatus.QUEUED if left else JobStatus.FAILED)

    @invariant()
    def rows_are_as_the_model_says_and_events_tell_how_they_got_there(self) -> None:
        with self.world.database.read() as session:
            jobs = {job.id: job for job in session.scalars(select(Job))}
            events = list(session.scalars(select(JobEvent).order_by(JobEvent.seq)))
        for job_id, known in self.known.items():
            job, owner = jobs[job_id], known.holder.owner if known.holder else None
            assert (job.status, job.attempt, job.lease_owner) == (known.status, known.attempt, owner)
            _assert_gapless(job, [event for event in events if event.job_id == job_id])

    def _job(self, job_id: str) -> Job:
        with self.world.database.read() as session:
            return session.get_one(Job, job_id)


def _assert_gapless(job: Job, events: list[JobEvent]) -> None:
    assert [event.seq for event in events] == list(range(1, job.event_seq + 1))
    moves = [(event.data["from"], event.data["to"]) for event in events if event.type == "status"]
    assert [before for before, _ in moves] == [None, *(after for _, after in moves[:-1])]
    assert moves[-1][1] == job.status


@pytest.fixture
def world(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    database = Database(settings.resolved_database_url)
    tenant_id = add_tenant(database)
    world = World(database, settings, tenant_id, add_model(database, tenant_id))
    for module in (transitions, reaper, turns):
        monkeypatch.setattr(module, "now", world.now)
    yield world
    database.dispose()


def test_no_order_of_events_gives_a_job_two_holders_or_moves_it_after_its_end(world: World) -> None:
    run_state_machine_as_test(
        lambda: Claims(world),
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )
