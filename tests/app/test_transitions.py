"""The one writer of a job's status: who may claim, who may write, what is final."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError

from app.db.session import Database
from app.db.tables import Artifact, Job, JobEvent, JobLayer, OutboxMessage
from app.jobs import outcomes, transitions
from app.jobs.gates import evaluate_gates
from app.jobs.transitions import LEGAL, Fence, IllegalTransitionError, StaleFenceError, record, renew, transition
from nupes_client.schemas.jobs import TERMINAL_STATUSES, JobError, JobPhase, JobStatus, ProgressInfo
from nupes_client.schemas.problems import JobErrorCode
from nupes_client.schemas.specs import GatesSpec
from tests.app.jobrows import claim, make_file, make_layer, make_metrics, make_result, new_job, read_job

THREADS = 8


@pytest.fixture
def database(settings: Any) -> Iterator[Database]:
    database = Database(settings.resolved_database_url)
    yield database
    database.dispose()


def together(count: int, act: Callable[[int], Any]) -> list[Any]:
    """Run `act` in threads that start at the same moment."""
    gate = threading.Barrier(count)

    def run(number: int) -> Any:
        gate.wait()
        return act(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


def events_of(database: Database, job_id: str) -> list[JobEvent]:
    with database.read() as session:
        return list(session.scalars(select(JobEvent).where(JobEvent.job_id == job_id).order_by(JobEvent.seq)))


def expire_lease(database: Database, job_id: str) -> None:
    job = read_job(database, job_id)
    assert job.started_at is not None
    with database.write() as session:
        session.execute(update(Job).where(Job.id == job_id).values(lease_until=job.created_at))


def count_rows(database: Database, table: Any, job_id: str) -> int:
    with database.read() as session:
        return len(list(session.scalars(select(table).where(table.job_id == job_id))))


def test_a_new_job_has_its_first_event_and_a_wake_up(database: Database) -> None:
    job_id = new_job(database, device_class="gpu")
    assert [(event.seq, event.data) for event in events_of(database, job_id)] == [(1, {"from": None, "to": "queued"})]
    with database.read() as session:
        assert [row.queue for row in session.scalars(select(OutboxMessage))] == ["gpu"]


def test_of_many_claims_at_once_exactly_one_wins(database: Database) -> None:
    job_id = new_job(database)

    def attempt(number: int) -> Fence | None:
        with database.write() as session:
            return transitions.claim(session, job_id, f"worker-{number}", 60)

    won = [fence for fence in together(THREADS, attempt) if fence]
    assert len(won) == 1
    job = read_job(database, job_id)
    assert (job.attempt, job.lease_owner) == (1, won[0].owner)
    assert [event.seq for event in events_of(database, job_id)] == [1, 2]


def test_of_many_claims_of_an_expired_lease_exactly_one_wins(database: Database) -> None:
    job_id = new_job(database)
    claim(database, job_id)
    expire_lease(database, job_id)

    def attempt(number: int) -> Fence | None:
        with database.write() as session:
            return transitions.claim(session, job_id, f"other-{number}", 60)

    won = [fence for fence in together(THREADS, attempt) if fence]
    assert [fence.attempt for fence in won] == [2]


def test_a_held_job_can_not_be_claimed(database: Database) -> None:
    job_id = new_job(database)
    claim(database, job_id)
    with database.write() as session:
        assert transitions.claim(session, job_id, "worker-2", 60) is None


def test_a_job_without_attempts_left_can_not_be_claimed(database: Database) -> None:
    job_id = new_job(database, max_attempts=1)
    claim(database, job_id)
    expire_lease(database, job_id)
    with database.write() as session:
        assert transitions.claim(session, job_id, "worker-2", 60) is None


def test_event_numbers_have_no_gaps_under_concurrent_writers(database: Database) -> None:
    job_id = new_job(database)
    fence = claim(database, job_id)

    def write(number: int) -> None:
        for step in range(5):
            with database.write() as session:
                record(session, session.get_one(Job, job_id), "log", {"from": number, "step": step}, fence=fence)

    together(THREADS, write)
    events = events_of(database, job_id)
    assert [event.seq for event in events] == list(range(1, 3 + THREADS * 5))
    job = read_job(database, job_id)
    assert job.event_seq == job.version == len(events)


STALE_WRITES: dict[str, Callable[[Any, Job, Fence], None]] = {
    "phase": lambda s, job, fence: outcomes.enter_phase(s, job, fence, JobPhase.QUANTIZING),
    "progress": lambda s, job, fence: outcomes.report_progress(
        s, job, fence, ProgressInfo(fraction=0.5, current=1, total=2, unit="layers")
    ),
    "succeed": lambda s, job, fence: outcomes.succeed(s, job, fence, make_result(), [make_layer()], [make_file()]),
    "fail": lambda s, job, fence: outcomes.fail(s, job, fence, JobError(code=JobErrorCode.INTERNAL, message="x")),
    "cancel": lambda s, job, fence: outcomes.finish_cancel(s, job, fence),
    "requeue": lambda s, job, fence: outcomes.requeue(s, job, fence, reason="shutdown"),
}


@pytest.mark.parametrize("write", STALE_WRITES.values(), ids=STALE_WRITES)
@pytest.mark.parametrize("since", ["taken over", "failed by the reaper"])
def test_a_zombie_writes_nothing(database: Database, write: Callable[[Any, Job, Fence], None], since: str) -> None:
    job_id = new_job(database)
    zombie = claim(database, job_id, "zombie")
    expire_lease(database, job_id)
    if since == "taken over":
        claim(database, job_id, "successor")
    else:
        with database.write() as session:
            lost = JobError(code=JobErrorCode.WORKER_LOST, message="gone")
            outcomes.fail(session, session.get_one(Job, job_id), None, lost)
    before = vars_of(read_job(database, job_id))
    with pytest.raises(StaleFenceError), database.write() as session:
        write(session, session.get_one(Job, job_id), zombie)
    assert vars_of(read_job(database, job_id)) == before
    assert count_rows(database, JobLayer, job_id) == count_rows(database, Artifact, job_id) == 0
    with database.write() as session:
        assert not renew(session, job_id, zombie, 60)


def vars_of(job: Job) -> dict[str, Any]:
    return {column.key: getattr(job, column.key) for column in Job.__table__.columns}


def test_the_same_owner_of_an_earlier_attempt_is_a_zombie_too(database: Database) -> None:
    job_id = new_job(database)
    first = claim(database, job_id, "worker-1")
    expire_lease(database, job_id)
    second = claim(database, job_id, "worker-1")
    with database.write() as session:
        assert not renew(session, job_id, first, 60)
        assert renew(session, job_id, second, 60)


def test_a_renewed_lease_lasts_longer_and_is_no_event(database: Database) -> None:
    job_id = new_job(database)
    fence = claim(database, job_id, lease_s=1)
    before = read_job(database, job_id)
    with database.write() as session:
        assert renew(session, job_id, fence, 600)
    after = read_job(database, job_id)
    assert before.lease_until
    assert after.lease_until
    assert after.lease_until > before.lease_until
    assert after.version == before.version


@pytest.mark.parametrize("final", sorted(TERMINAL_STATUSES))
def test_terminal_states_are_final(database: Database, final: JobStatus) -> None:
    assert LEGAL[final] == frozenset()
    job_id = new_job(database)
    with database.write() as session:
        session.execute(update(Job).where(Job.id == job_id).values(status=final.value))
    for to in JobStatus:
        with pytest.raises(IllegalTransitionError), database.write() as session:
            transition(session, session.get_one(Job, job_id), to)
    assert read_job(database, job_id).status == final


def test_a_change_based_on_an_outdated_row_is_refused(database: Database) -> None:
    job_id = new_job(database)
    outdated = read_job(database, job_id)
    claim(database, job_id)
    with pytest.raises(StaleFenceError), database.write() as session:
        transition(session, session.merge(outdated, load=False), JobStatus.CANCELLED)
    assert read_job(database, job_id).status == JobStatus.RUNNING


def test_success_writes_result_layers_artifacts_and_verdict_together(database: Database) -> None:
    gates = {"max_bytes": 400, "min_coverage_pct": 99}
    job_id = new_job(database, spec={"evaluation": None, "gates": gates})
    fence = claim(database, job_id)
    layers = [make_layer("b", histogram=[3, 4]), make_layer("a", mse=float("nan"))]
    with database.write() as session:
        files = [make_file("b.json"), make_file("a.json")]
        outcomes.succeed(session, session.get_one(Job, job_id), fence, make_result(), layers, files)
    job = read_job(database, job_id)
    assert (job.status, job.verdict, job.progress_fraction, job.lease_owner) == ("succeeded", "failed", 1.0, None)
    assert [(gate["gate"], gate["passed"]) for gate in job.gates] == [("max_bytes", True), ("min_coverage_pct", False)]
    assert job.finished_at is not None
    with database.read() as session:
        rows = session.scalars(select(JobLayer).where(JobLayer.job_id == job_id).order_by(JobLayer.position)).all()
        assert [(row.name, row.data["mse"]) for row in rows] == [("b", 1e-5), ("a", None)]
        assert "histogram" not in rows[0].data
        newest_first = session.scalars(select(Artifact).order_by(Artifact.id.desc())).all()
        assert [file.path for file in newest_first] == ["a.json", "b.json"]
    assert events_of(database, job_id)[-1].data["verdict"] == "failed"


def test_a_failure_to_store_artifacts_leaves_the_job_running(database: Database) -> None:
    job_id = new_job(database)
    fence = claim(database, job_id)
    twice = [make_file("same"), make_file("same")]
    with pytest.raises(IntegrityError), database.write() as session:
        outcomes.succeed(session, session.get_one(Job, job_id), fence, make_result(), [make_layer()], twice)
    assert read_job(database, job_id).status == JobStatus.RUNNING
    assert count_rows(database, JobLayer, job_id) == 0


def test_work_that_is_done_when_cancelled_counts(database: Database) -> None:
    job_id = new_job(database)
    fence = claim(database, job_id)
    with database.write() as session:
        transition(session, session.get_one(Job, job_id), JobStatus.CANCELLING)
    with database.write() as session:
        outcomes.succeed(session, session.get_one(Job, job_id), fence, make_result(), [], [make_file()])
    assert read_job(database, job_id).status == JobStatus.SUCCEEDED


def test_a_failure_because_of_the_cancellation_is_no_failure(database: Database) -> None:
    job_id = new_job(database)
    fence = claim(database, job_id)
    with database.write() as session:
        transition(session, session.get_one(Job, job_id), JobStatus.CANCELLING)
    with database.write() as session:
        error = JobError(code=JobErrorCode.CANCELLED, message="stopped")
        outcomes.fail(session, session.get_one(Job, job_id), fence, error)
    job = read_job(database, job_id)
    assert (job.status, job.error) == ("cancelled", None)


def test_a_new_phase_starts_counting_anew_and_never_goes_back(database: Database) -> None:
    job_id = new_job(database)
    fence = claim(database, job_id)
    done = ProgressInfo(fraction=0.05, current=716, total=1000, unit="bytes")
    with database.write() as session:
        outcomes.report_progress(session, session.get_one(Job, job_id), fence, done)
        outcomes.enter_phase(session, session.get_one(Job, job_id), fence, JobPhase.QUANTIZING, fraction=0.07)
    job = read_job(database, job_id)
    assert (job.progress_fraction, job.progress_current, job.progress_total) == (0.07, 0, 0)
    with database.write() as session:
        outcomes.enter_phase(session, session.get_one(Job, job_id), fence, JobPhase.VALIDATING, fraction=0.06)
    assert read_job(database, job_id).progress_fraction == 0.07


def test_a_job_given_back_waits_again_with_a_new_wake_up(database: Database) -> None:
    job_id = new_job(database)
    fence = claim(database, job_id)
    with database.write() as session:
        outcomes.enter_phase(session, session.get_one(Job, job_id), fence, JobPhase.QUANTIZING)
    with database.write() as session:
        outcomes.requeue(session, session.get_one(Job, job_id), fence, reason="shutdown")
    job = read_job(database, job_id)
    assert (job.status, job.phase, job.lease_owner, job.attempt) == ("queued", None, None, 1)
    assert count_rows(database, OutboxMessage, job_id) == 2
    assert claim(database, job_id, "worker-2").attempt == 2


@pytest.mark.parametrize(
    ("gates", "metrics", "verdict"),
    [
        (None, None, None),
        ({"max_perplexity_increase_pct": 2.0}, make_metrics(50.0, 50.9), "passed"),
        ({"max_perplexity_increase_pct": 2.0}, make_metrics(50.0, 51.1), "failed"),
        ({"max_perplexity_increase_pct": 0.0}, make_metrics(50.0, 49.0), "passed"),
        ({"max_perplexity_increase_pct": 2.0}, make_metrics(50.0, float("inf")), "failed"),
        ({"max_kl": 0.01}, make_metrics(None, None, kl=0.01), "passed"),
        ({"max_kl": 0.01}, make_metrics(None, None), "failed"),
        ({"max_kl": 0.01}, None, "failed"),
        ({"min_top1_agreement": 0.9}, make_metrics(None, None, top1_agreement=0.89), "failed"),
        ({"min_coverage_pct": 97.0}, None, "passed"),
        ({"max_bytes": 299}, None, "failed"),
        ({"max_bytes": 300, "min_coverage_pct": 98}, None, "failed"),
    ],
)
def test_gates_hold_the_result_against_their_limits(gates: Any, metrics: Any, verdict: str | None) -> None:
    spec = GatesSpec.model_validate(gates) if gates else None
    results, found = evaluate_gates(spec, make_result(metrics=metrics))
    assert found == verdict
    assert [gate.gate for gate in results] == list(gates or {})
