"""Which queue jobs go to, and what they say while no worker can take them."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import delete, select

from app.core.clock import now
from app.db.session import Database
from app.db.tables import JobEvent, OutboxMessage, Worker
from app.jobs.routing import route
from app.jobs.views import job_view
from app.workers.capacity import Capacity, choose_class
from nupes_client.schemas.jobs import Waiting, WaitingReason
from tests.app.jobrows import claim, new_job, read_job

GIB = 1 << 30
LEARNS = {"optimize": {"mode": "data_driven"}, "evaluation": None}


def add_worker(database: Database, memory_bytes: int | None, device_class: str = "cpu", age_s: float = 0) -> str:
    name = f"{device_class}-{memory_bytes}"
    seen = now() - timedelta(seconds=age_s)
    with database.write() as session:
        session.add(
            Worker(id=name, device_class=device_class, hostname="h", memory_bytes=memory_bytes, heartbeat_at=seen)
        )
    return name


def events(database: Database, job_id: str, kind: str) -> list[dict[str, object]]:
    with database.read() as session:
        rows = select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.type == kind).order_by(JobEvent.seq)
        return [row.data for row in session.scalars(rows)]


def test_a_job_that_fits_no_live_worker_says_so_with_the_figures_until_one_comes(database: Database) -> None:
    add_worker(database, GIB)
    job_id, small, unplanned = (new_job(database, memory_bytes=size) for size in (2 * GIB, GIB, None))
    assert route(database) == [job_id]
    assert route(database) == []
    waiting = Waiting(reason=WaitingReason.MEMORY, device_class="cpu", needed_bytes=2 * GIB, largest_bytes=GIB)
    assert job_view(read_job(database, job_id)).waiting == waiting
    assert events(database, job_id, "waiting") == [{"for": waiting.model_dump(mode="json")}]
    assert {job_view(read_job(database, each)).waiting for each in (small, unplanned)} == {None}
    add_worker(database, 2 * GIB)
    assert route(database) == [job_id]
    assert job_view(read_job(database, job_id)).waiting is None
    assert events(database, job_id, "waiting")[1:] == [{"for": None}]


def test_a_job_that_is_taken_waits_for_nothing(database: Database) -> None:
    add_worker(database, GIB)
    job_id = new_job(database, memory_bytes=2 * GIB)
    route(database)
    claim(database, job_id)
    assert job_view(read_job(database, job_id)).waiting is None
    assert route(database) == []


def test_a_class_without_a_live_worker_is_told_apart_from_one_that_is_too_small(database: Database) -> None:
    add_worker(database, 8 * GIB)
    add_worker(database, 8 * GIB, "gpu", age_s=3600)
    job_id = new_job(database, memory_bytes=GIB, device="gpu", device_class="gpu")
    assert route(database) == [job_id]
    waiting = job_view(read_job(database, job_id)).waiting
    assert waiting is not None
    assert (waiting.reason, waiting.device_class, waiting.largest_bytes) == (WaitingReason.NO_WORKER, "gpu", None)


def test_a_job_without_a_choice_moves_to_the_class_that_has_the_memory_and_wakes_it(database: Database) -> None:
    add_worker(database, GIB)
    add_worker(database, 4 * GIB, "gpu")
    free, bound = (new_job(database, memory_bytes=2 * GIB, device=device) for device in ("auto", "cpu"))
    with database.write() as session:
        session.execute(delete(OutboxMessage))
    assert sorted(route(database)) == sorted([free, bound])
    assert (read_job(database, free).device_class, read_job(database, bound).device_class) == ("gpu", "cpu")
    assert events(database, free, "routed") == [{"from": "cpu", "to": "gpu"}]
    assert job_view(read_job(database, free)).waiting is None
    assert job_view(read_job(database, bound)).waiting is not None
    with database.read() as session:
        assert [(each.job_id, each.queue) for each in session.scalars(select(OutboxMessage))] == [(free, "gpu")]


def test_jobs_that_learn_prefer_gpu_workers_and_others_cpu_workers_a_choice_is_kept() -> None:
    both = ("cpu", "gpu")
    assert choose_class("auto", both, learns=True) == "gpu"
    assert choose_class("auto", both, learns=False) == "cpu"
    assert choose_class("auto", ("cpu",), learns=True) == "cpu"
    assert choose_class("auto", ("gpu",), learns=False) == "gpu"
    assert choose_class("auto", (), learns=True) == "cpu"
    assert choose_class("gpu", ("cpu",), learns=False) == "gpu"
    assert choose_class("cpu", both, learns=True) == "cpu"


def test_a_worker_that_is_drained_or_silent_is_not_counted_on(database: Database) -> None:
    add_worker(database, 8 * GIB, "gpu", age_s=3600)
    drained = add_worker(database, 8 * GIB)
    with database.write() as session:
        session.get_one(Worker, drained).draining = True
    add_worker(database, GIB)
    with database.read() as session:
        assert Capacity.of(session).largest == {"cpu": GIB}
