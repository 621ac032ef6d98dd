"""Curves of jobs: written under the fence, replaced by another attempt, thinned out when read."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from sqlalchemy import select

from app.db.session import Database
from app.db.tables import Job, JobMetric
from app.jobs import outcomes
from app.jobs.metrics import Point, thin_out, write_points
from app.jobs.transitions import Fence, StaleFenceError
from nupes_client.schemas.jobs import MetricPoint
from tests.app.api import Api
from tests.app.jobrows import claim, make_result

LOSS = "loss/model.layers.0"


def write(database: Database, job_id: str, fence: Fence, *points: tuple[str, int, float]) -> None:
    with database.write() as session:
        write_points(session, job_id, fence, [Point.of(*point) for point in points])


def requeue(database: Database, job_id: str, fence: Fence) -> None:
    with database.write() as session:
        outcomes.requeue(session, session.get_one(Job, job_id), fence, reason="worker_lost")


def curves(api: Api, job_id: str, **params: Any) -> dict[str, list[tuple[int, float | None]]]:
    response = api.get(f"/v1/jobs/{job_id}/metrics", params=params)
    assert response.status_code == 200, response.text
    return {each["name"]: [(p["step"], p["value"]) for p in each["points"]] for each in response.json()["data"]}


def test_points_come_back_by_series_and_step_while_the_job_runs(api: Api) -> None:
    job_id = api.add_job()
    assert curves(api, job_id) == {}
    fence = claim(api.database, job_id)
    names = [f"loss/model.layers.{index}" for index in (10, 2, 0)]
    for step in (1, 0):
        write(api.database, job_id, fence, *((name, 10 * step, 0.5 / (1 + step)) for name in names))
        write(api.database, job_id, fence, *((name, 10 * step + 1, 0.25) for name in names))
    write(api.database, job_id, fence, *((name, 10, 0.125) for name in names))
    found = curves(api, job_id)
    assert list(found) == names[::-1]
    assert found[names[0]] == [(0, 0.5), (1, 0.25), (10, 0.125)]
    assert api.get(f"/v1/jobs/{job_id}").json()["links"]["metrics"] == f"/v1/jobs/{job_id}/metrics"


def test_only_the_series_asked_for_come(lite: Api) -> None:
    job_id = lite.add_job()
    write(lite.database, job_id, claim(lite.database, job_id), ("a", 0, 1.0), ("b", 0, 2.0), ("c", 0, 3.0))
    assert list(curves(lite, job_id, series=["a", "c"])) == ["a", "c"]
    assert curves(lite, job_id, series="none") == {}


def test_what_is_no_number_is_null_on_both_databases(api: Api) -> None:
    job_id = api.add_job()
    fence = claim(api.database, job_id)
    write(api.database, job_id, fence, (LOSS, 0, 1e-300), (LOSS, 1, math.nan), (LOSS, 2, math.inf))
    assert curves(api, job_id)[LOSS] == [(0, 1e-300), (1, None), (2, None)]


def test_names_that_no_database_holds_are_made_to_fit(api: Api) -> None:
    job_id = api.add_job()
    write(api.database, job_id, claim(api.database, job_id), ("a\0b", 0, 1.0), ("n" * 300, 0, 1.0))
    assert sorted(map(len, curves(api, job_id))) == [2, 255]


def test_another_attempt_replaces_what_it_measures_again(api: Api) -> None:
    job_id = api.add_job()
    first = claim(api.database, job_id)
    write(api.database, job_id, first, *((LOSS, step, 9.0) for step in range(5)), ("loss/done", 0, 3.0))
    requeue(api.database, job_id, first)
    second = claim(api.database, job_id)
    assert second.attempt == 2
    write(api.database, job_id, second, (LOSS, 0, 1.0), (LOSS, 1, 0.5))
    assert curves(api, job_id) == {"loss/done": [(0, 3.0)], LOSS: [(0, 1.0), (1, 0.5)]}
    write(api.database, job_id, second, (LOSS, 2, 0.25))
    assert curves(api, job_id)[LOSS] == [(0, 1.0), (1, 0.5), (2, 0.25)]


def test_the_same_points_written_twice_are_there_once(api: Api) -> None:
    """As when the answer of the database to the first try was lost."""
    job_id = api.add_job()
    fence = claim(api.database, job_id)
    for _ in range(2):
        write(api.database, job_id, fence, (LOSS, 0, 1.0), (LOSS, 1, 0.5), (LOSS, 1, 0.75))
    assert curves(api, job_id)[LOSS] == [(0, 1.0), (1, 0.75)]


def test_a_worker_that_lost_the_job_writes_no_points(api: Api) -> None:
    job_id = api.add_job()
    lost = claim(api.database, job_id)
    write(api.database, job_id, lost, (LOSS, 0, 1.0))
    requeue(api.database, job_id, lost)
    with pytest.raises(StaleFenceError):
        write(api.database, job_id, lost, (LOSS, 0, 2.0))
    fence = claim(api.database, job_id)
    with api.database.write() as session:
        outcomes.succeed(session, session.get_one(Job, job_id), fence, make_result(), [], [])
    for stale in (lost, fence):
        with pytest.raises(StaleFenceError):
            write(api.database, job_id, stale, (LOSS, 0, 3.0))
    assert curves(api, job_id) == {LOSS: [(0, 1.0)]}


def test_points_are_no_news_of_the_job(api: Api) -> None:
    """A training of hours would flood everybody who watches the job."""
    job_id = api.add_job()
    fence = claim(api.database, job_id)
    before = api.get(f"/v1/jobs/{job_id}").json()
    write(api.database, job_id, fence, (LOSS, 0, 1.0))
    assert api.get(f"/v1/jobs/{job_id}").json() == before


def test_the_curves_of_a_deleted_job_are_gone(api: Api) -> None:
    job_id = api.add_job()
    fence = claim(api.database, job_id)
    write(api.database, job_id, fence, (LOSS, 0, 1.0))
    with api.database.write() as session:
        outcomes.succeed(session, session.get_one(Job, job_id), fence, make_result(), [], [])
    assert api("DELETE", f"/v1/jobs/{job_id}").status_code == 204
    with api.database.read() as session:
        assert session.scalars(select(JobMetric)).all() == []


def test_the_etag_changes_with_the_content(lite: Api) -> None:
    job_id = lite.add_job()
    fence = claim(lite.database, job_id)
    path = f"/v1/jobs/{job_id}/metrics"
    write(lite.database, job_id, fence, (LOSS, 0, 1.0))
    tag = lite.get(path).headers["ETag"]
    again = lite.get(path, {"If-None-Match": tag})
    assert (again.status_code, again.content) == (304, b"")
    write(lite.database, job_id, fence, (LOSS, 0, 2.0))
    assert lite.get(path, {"If-None-Match": tag}).status_code == 200


@pytest.mark.parametrize("query", ["max_points=3", "max_points=10001", "max_points=x", "series="])
def test_a_query_that_can_not_be_answered_is_refused(lite: Api, query: str) -> None:
    response = lite.get(f"/v1/jobs/{lite.add_job()}/metrics?{query}")
    assert response.status_code == 422
    assert response.json()["errors"][0]["pointer"].startswith(f"/query/{query.partition('=')[0]}")


def test_a_long_series_is_thinned_out_and_says_how_long_it_is(lite: Api) -> None:
    job_id = lite.add_job()
    points = [(LOSS, step, 1 / (1 + step)) for step in range(1000)]
    write(lite.database, job_id, claim(lite.database, job_id), *points)
    (series,) = lite.get(f"/v1/jobs/{job_id}/metrics", params={"max_points": 50}).json()["data"]
    assert series["count"] == 1000
    assert 25 <= len(series["points"]) <= 50
    assert [series["points"][place]["step"] for place in (0, -1)] == [0, 999]


def wavy(count: int) -> list[MetricPoint]:
    """Rises and falls, with one peak and one dip that are one point wide."""
    values = [math.sin(step / 7) for step in range(count)]
    values[count // 3], values[2 * count // 3] = 9.0, -9.0
    return [MetricPoint(step=step, value=value) for step, value in enumerate(values)]


@pytest.mark.parametrize("count", [5, 6, 7, 99, 100, 101, 1234])
@pytest.mark.parametrize("max_points", [4, 5, 10, 100])
def test_thinning_keeps_first_last_and_extremes_in_order(count: int, max_points: int) -> None:
    points = wavy(count)
    kept = thin_out(points, max_points)
    assert len(kept) <= max_points
    steps = [point.step for point in kept]
    assert steps == sorted(set(steps))
    assert (steps[0], steps[-1]) == (0, count - 1)
    if max_points >= count:
        assert kept == points
    assert {9.0, -9.0} <= {point.value for point in kept}


def test_thinning_spreads_what_it_keeps_over_the_whole_curve() -> None:
    steps = [point.step for point in thin_out(wavy(10_000), 100)]
    assert max(later - earlier for earlier, later in pairwise(steps)) < 500


def test_thinning_bears_points_that_are_no_numbers() -> None:
    points = [MetricPoint(step=step, value=None if step > 10 else float(step)) for step in range(100)]
    kept = thin_out(points, 10)
    assert len(kept) <= 10
    assert max(point.value for point in kept if point.value is not None) == 10.0
    assert kept[-1] == points[-1]
