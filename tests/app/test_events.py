"""Events of a job: the list, the stream, and what many watchers cost."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from typing import Any

import anyio.to_thread
import httpx
import pytest
from sqlalchemy import event

from app.db.session import Database
from app.db.tables import Job
from app.jobs import outcomes, repository, watch
from app.jobs.transitions import Fence, record
from app.jobs.watch import JobWatcher
from nupes_client.schemas.jobs import JobPhase
from tests.app.api import Api
from tests.app.jobrows import claim, make_result, new_job
from tests.app.serving import serve


def log(database: Database, job_id: str, fence: Fence, count: int = 1) -> None:
    with database.write() as session:
        for number in range(count):
            record(session, session.get_one(Job, job_id), "log", {"line": number}, fence=fence)


def finish(database: Database, job_id: str, fence: Fence) -> None:
    with database.write() as session:
        outcomes.succeed(session, session.get_one(Job, job_id), fence, make_result(), [], [])


def run_to_end(database: Database, job_id: str, lines: int = 3) -> None:
    fence = claim(database, job_id)
    with database.write() as session:
        outcomes.enter_phase(session, session.get_one(Job, job_id), fence, JobPhase.QUANTIZING)
    log(database, job_id, fence, lines)
    finish(database, job_id, fence)


def parse(text: str) -> list[dict[str, Any]]:
    """Messages of an event stream, comments left out."""
    messages = []
    for block in text.replace("\r\n", "\n").split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if line and not line.startswith(":"))
        if fields:
            messages.append({**fields, "data": json.loads(fields["data"])})
    return messages


# The list


def test_events_are_listed_oldest_first_from_any_number(api: Api) -> None:
    job_id = api.add_job()
    run_to_end(api.database, job_id)
    path = f"/v1/jobs/{job_id}/events"
    events = api.get(path).json()["data"]
    assert [event["seq"] for event in events] == list(range(1, 8))
    assert [event["type"] for event in events] == ["status", "status", "phase", "log", "log", "log", "status"]
    assert [event["seq"] for event in api.get(f"{path}?after=5").json()["data"]] == [6, 7]
    page = api.get(f"{path}?limit=4").json()
    assert (page["has_more"], page["next_cursor"]) == (True, "4")
    rest = api.get(f"{path}?limit=4&cursor=4").json()
    assert ([event["seq"] for event in rest["data"]], rest["has_more"]) == ([5, 6, 7], False)


# The stream


def test_the_stream_of_an_ended_job_has_all_events_and_closes(api: Api) -> None:
    job_id = api.add_job()
    run_to_end(api.database, job_id)
    response = api.get(f"/v1/jobs/{job_id}/events/stream")
    assert response.headers["Content-Type"].startswith("text/event-stream")
    assert response.headers["Cache-Control"] == "no-store"
    messages = parse(response.text)
    assert [int(message["id"]) for message in messages] == list(range(1, 8))
    assert [message["data"] for message in messages] == api.get(f"/v1/jobs/{job_id}/events").json()["data"]
    assert messages[2]["event"] == "phase"


@pytest.mark.parametrize(("headers", "query"), [({"Last-Event-ID": "5"}, ""), ({}, "?after=5")])
def test_a_stream_goes_on_where_it_broke(lite: Api, headers: dict[str, str], query: str) -> None:
    job_id = lite.add_job()
    run_to_end(lite.database, job_id)
    messages = parse(lite.get(f"/v1/jobs/{job_id}/events/stream{query}", headers).text)
    assert [message["id"] for message in messages] == ["6", "7"]


def test_a_reconnect_after_the_end_is_204_which_stops_a_browser(lite: Api) -> None:
    job_id = lite.add_job()
    run_to_end(lite.database, job_id)
    path = f"/v1/jobs/{job_id}/events/stream"
    assert lite.get(path, {"Last-Event-ID": "7"}).status_code == 204
    assert lite.get(f"{path}?after=7").text == ""


@pytest.mark.parametrize("last", ["x", "-1", "1" * 30])
def test_a_last_event_id_that_is_no_number_is_refused(lite: Api, last: str) -> None:
    response = lite.get(f"/v1/jobs/{lite.add_job()}/events/stream", {"Last-Event-ID": last})
    assert response.status_code == 422


def test_events_arrive_while_the_job_runs(api: Api) -> None:
    """Each step of the job waits until the step before has reached the client."""
    job_id = api.add_job()
    fences: list[Fence] = []
    steps = [
        lambda: fences.append(claim(api.database, job_id)),
        lambda: log(api.database, job_id, fences[0]),
        lambda: log(api.database, job_id, fences[0]),
        lambda: finish(api.database, job_id, fences[0]),
        lambda: None,
    ]
    arrived = []
    url = f"/v1/jobs/{job_id}/events/stream"
    with serve(api.app) as base, httpx.stream("GET", base + url, headers=api.headers, timeout=20) as response:
        for line in filter(lambda line: line.startswith("id: "), response.iter_lines()):
            arrived.append(line)
            steps.pop(0)()
    assert arrived == [f"id: {number}" for number in range(1, 6)]


# What watchers cost


async def until(holds: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def count_queries(database: Database) -> list[str]:
    queries: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("SELECT"):
            queries.append(statement)

    event.listen(database.engine, "before_cursor_execute", note)
    return queries


def test_500_watchers_are_served_by_one_poller(database: Database) -> None:
    job_ids = [new_job(database) for _ in range(5)]
    fences = {job_id: claim(database, job_id) for job_id in job_ids}
    watcher = JobWatcher(database, poll_s=0.05)
    threads_before = threading.active_count()

    async def follow(job_id: str) -> list[int]:
        return [event.seq async for event in watcher.events(job_id, 0)]

    async def scenario() -> tuple[list[list[int]], int, float]:
        tasks = [asyncio.create_task(follow(job_id)) for job_id in job_ids for _ in range(100)]
        await until(lambda: watcher.watching == 500)
        await asyncio.sleep(0.5)
        assert threading.active_count() - threads_before < 12
        queries = count_queries(database)
        began = time.monotonic()
        await asyncio.sleep(1)
        idle_queries = len(queries)
        idle_s = time.monotonic() - began
        assert database.engine.pool.checkedout() <= 1  # type: ignore[attr-defined]
        for job_id, fence in fences.items():
            await anyio.to_thread.run_sync(log, database, job_id, fence, 3)
            await anyio.to_thread.run_sync(finish, database, job_id, fence)
        return await asyncio.gather(*tasks), idle_queries, idle_s

    received, idle_queries, idle_s = asyncio.run(scenario())
    assert received == [list(range(1, 7))] * 500
    assert idle_queries <= idle_s / 0.05 + 2, "one query a poll, however many watch"
    assert watcher.watching == 0


def test_a_watcher_that_falls_behind_misses_nothing(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "RECENT_EVENTS", 8)
    job_id = new_job(database)
    fence = claim(database, job_id)
    watcher = JobWatcher(database, poll_s=0.02)
    count = 30

    async def scenario() -> list[int]:
        seen = []
        async for item in watcher.events(job_id, 0):
            seen.append(item.seq)
            if len(seen) == 2:  # a slow client: everything happens while it is busy with one event
                await anyio.to_thread.run_sync(log, database, job_id, fence, count)
                await anyio.to_thread.run_sync(finish, database, job_id, fence)
                await asyncio.sleep(0.2)
        return seen

    assert asyncio.run(scenario()) == list(range(1, count + 4))


def test_a_watcher_that_leaves_frees_everything_and_the_poller_rests(database: Database) -> None:
    job_id = new_job(database)
    watcher = JobWatcher(database, poll_s=0.02)

    async def follow() -> None:
        async for _ in watcher.events(job_id, 0):
            pass

    async def scenario() -> int:
        tasks = [asyncio.create_task(follow()) for _ in range(20)]
        await until(lambda: watcher.watching == 20)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert watcher.watching == 0
        await asyncio.sleep(0.2)
        queries = count_queries(database)
        await asyncio.sleep(0.3)
        return len(queries)

    assert asyncio.run(scenario()) == 0


def test_a_stream_of_a_deleted_job_ends(database: Database) -> None:
    job_id = new_job(database)
    watcher = JobWatcher(database, poll_s=0.02)

    def delete() -> None:
        with database.write() as session:
            repository.remove(session, session.get_one(Job, job_id))

    async def scenario() -> list[int]:
        seen = []
        async with asyncio.timeout(10):
            async for item in watcher.events(job_id, 0):
                seen.append(item.seq)
                await anyio.to_thread.run_sync(delete)
        return seen

    assert asyncio.run(scenario()) == [1]


def test_clients_that_disconnect_are_forgotten(lite: Api) -> None:
    job_id = lite.add_job()
    tag = lite.get(f"/v1/jobs/{job_id}").headers["ETag"]
    stream, long_poll = f"/v1/jobs/{job_id}/events/stream", f"/v1/jobs/{job_id}"

    def watching() -> int:
        return int(lite.app.state.job_watcher.watching)

    async def scenario(url: str) -> None:
        async with httpx.AsyncClient(base_url=url, headers=lite.headers, timeout=30) as client:
            streams = [asyncio.create_task(client.get(stream)) for _ in range(10)]
            headers = {"If-None-Match": tag, "Prefer": "wait=30"}
            polls = [asyncio.create_task(client.get(long_poll, headers=headers)) for _ in range(10)]
            await until(lambda: watching() == 20)
            other = await client.get("/v1/jobs")  # nobody's thread is taken
            assert other.status_code == 200
            for task in streams + polls:
                task.cancel()
            await asyncio.gather(*streams, *polls, return_exceptions=True)
        await until(lambda: watching() == 0, 5)

    with serve(lite.app) as url:
        asyncio.run(scenario(url))
