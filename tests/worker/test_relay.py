"""Events of children on their way into the database."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from app.db.session import Database
from app.db.tables import Job
from app.jobs import outcomes, repository
from app.jobs.metrics import read_metrics
from app.settings import Settings
from nupes_client.schemas.jobs import JobPhase
from tests.app.jobrows import claim, new_job, read_job
from tests.worker.factory import REPOSITORY
from worker.child import Command
from worker.curves import MOST_POINTS
from worker.phases import Timeline
from worker.relay import Relay
from worker.supervisor import supervise

LOSS = "loss/model.layers.0"


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    database = Database(settings.resolved_database_url)
    yield database
    database.dispose()


def curve(database: Database, job_id: str, name: str = LOSS) -> list[float | None]:
    with database.read() as session:
        found = {series.name: series for series in read_metrics(session, job_id, [], 1000).data}
    return [point.value for point in found[name].points] if name in found else []


def metrics(*values: float | None, start: int = 0, series: str = LOSS) -> dict[str, Any]:
    points = [[series, start + index, value] for index, value in enumerate(values)]
    return {"type": "metrics", "points": points}


def test_points_of_a_second_attempt_replace_those_of_the_first(database: Database) -> None:
    job_id = new_job(database)
    first = claim(database, job_id)
    relay = Relay(database, job_id, first)
    relay(metrics(4.0, 3.0))
    relay(metrics(2.0, math.nan, start=2))
    assert curve(database, job_id) == [4.0, 3.0, 2.0, None]
    with database.write() as session:
        outcomes.requeue(session, session.get_one(Job, job_id), first, reason="worker_lost")
    again = Relay(database, job_id, claim(database, job_id, "worker-2"))
    relay(metrics(9.0, start=4))  # the zombie still talks
    again(metrics(1.0))
    assert curve(database, job_id) == [1.0]


def test_points_that_came_while_the_database_was_away_are_written_later(
    make_settings: Callable[..., Settings], sqlite_url: str
) -> None:
    database = Database(make_settings(database_url=sqlite_url).resolved_database_url)
    job_id = new_job(database)
    relay = Relay(database, job_id, claim(database, job_id))
    relay(metrics(3.0))
    _rename(database, "job_metrics", "away")
    relay(metrics(2.0, start=1))
    relay(metrics(1.0, start=2))
    _rename(database, "away", "job_metrics")
    assert curve(database, job_id) == [3.0]
    relay.write_points()
    assert curve(database, job_id) == [3.0, 2.0, 1.0]
    database.dispose()


def _rename(database: Database, old: str, new: str) -> None:
    with database.write() as session:
        session.execute(text(f"ALTER TABLE {old} RENAME TO {new}"))


def test_points_of_no_shape_fail_the_job_and_write_nothing(database: Database) -> None:
    job_id = new_job(database)
    relay = Relay(database, job_id, claim(database, job_id))
    with pytest.raises((TypeError, ValueError)):
        relay({"type": "metrics", "points": [[LOSS, "first", 1.0]]})
    assert curve(database, job_id) == []


def test_learning_on_data_is_most_of_a_data_driven_job() -> None:
    for timeline, least, most in (
        (Timeline.of(data_driven=False, calibrated=False), 0.0, 0.0),
        (Timeline.of(data_driven=False, calibrated=True), 0.1, 0.5),
        (Timeline.of(data_driven=True, calibrated=True), 0.7, 0.95),
    ):
        share = timeline.fraction(JobPhase.CALIBRATING, 1, 1) - timeline.fraction(JobPhase.CALIBRATING, 0, 1)
        assert least <= share <= most
        ends = [timeline.fraction(phase, part, 2) for phase in JobPhase for part in range(3)]
        assert ends == sorted(ends)
        assert (ends[0], ends[-1]) == (0.0, 1.0)


def test_a_job_shows_how_far_it_is_on_its_own_timeline(database: Database) -> None:
    job_id = new_job(database)
    relay = Relay(database, job_id, claim(database, job_id))
    relay.timeline = Timeline.of(data_driven=True, calibrated=True)
    relay({"type": "phase", "phase": "calibrating"})
    relay({"type": "progress", "phase": "calibrating", "current": 4, "total": 4, "unit": "blocks"})
    job = read_job(database, job_id)
    assert (job.phase, job.progress_unit) == ("calibrating", "blocks")
    assert job.progress_fraction == relay.timeline.fraction(JobPhase.QUANTIZING, 0, 1)


def messages(tmp_path: Path, how: str) -> list[dict[str, Any]]:
    """What a child says that measures curves."""
    env = {"PYTHONPATH": str(REPOSITORY), "PATH": os.environ["PATH"]}
    said: list[dict[str, Any]] = []
    command = Command("tests.worker.children.measuring", [how], env, tmp_path, tmp_path / "log")
    supervise(command, said.append, lambda: None, 1.0)
    assert {each["type"] for each in said} == {"metrics"}, (tmp_path / "log").read_text()
    return said


def test_points_go_out_together_and_all_of_them_though_the_work_fails(tmp_path: Path) -> None:
    said = messages(tmp_path, "fail")
    assert len(said) < 50
    assert [point for each in said for point in each["points"]] == [
        ["loss", step, 1 / (1 + step)] for step in range(500)
    ]


def test_a_flood_of_points_is_cut_into_lines_that_can_be_read(tmp_path: Path) -> None:
    lengths = [len(each["points"]) for each in messages(tmp_path, "flood")]
    assert sum(lengths) == 3 * MOST_POINTS
    assert max(lengths) <= MOST_POINTS


def test_a_child_that_talks_without_end_fills_no_log(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.relay.MAX_LINES", 3)
    job_id = new_job(database)
    relay = Relay(database, job_id, claim(database, job_id))
    for number in range(9):
        relay({"type": "log", "level": "info", "message": f"line {number}"})
    with database.read() as session:
        lines = [event.data["message"] for event in repository.events_of_types(session, job_id, ["log"])]
    assert lines == ["line 0", "line 1", "further lines are left out"]
