"""The async SDK: nothing of the blocking one is missing, and it works while the loop goes on."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from nupes_client import AsyncClient
from nupes_client.client import Client
from nupes_client.errors import NotFoundError
from nupes_client.files import sha256_of
from nupes_client.schemas.jobs import JobEvent, JobStatus
from nupes_client.schemas.specs import JobCreate, ModelRef
from tests.client import work
from tests.client.conftest import RunningService

LEFT_OUT = {"jobs.stream"}
"""The raw stream with its heartbeats; `jobs.events` is the one for users."""


def _methods(thing: object, prefix: str = "") -> set[str]:
    return {
        f"{prefix}{name}"
        for name, value in inspect.getmembers(thing)
        if not name.startswith("_") and callable(value) and name not in {"close", "aclose"}
    }


def _all_methods(client: Client | AsyncClient) -> set[str]:
    resources = [name for name, value in vars(client).items() if not name.startswith("_") and not callable(value)]
    inner = {method for name in resources for method in _methods(getattr(client, name), f"{name}.")}
    return inner | _methods(client)


def test_every_method_of_the_blocking_client_is_there_with_its_arguments() -> None:
    blocking, awaited = Client("http://127.0.0.1:1", "k"), AsyncClient("http://127.0.0.1:1", "k")
    assert _all_methods(awaited) == _all_methods(blocking) - LEFT_OUT
    for path in _all_methods(awaited):
        one, other = _resolved(blocking, path), _resolved(awaited, path)
        assert inspect.signature(one) == inspect.signature(other), path
        assert other.__doc__ == one.__doc__, path


def _resolved(client: object, path: str) -> Callable[..., object]:
    for name in path.split("."):
        client = getattr(client, name)
    assert callable(client)
    return client


def _run(service: RunningService, key: str, do: Callable[[AsyncClient], Awaitable[None]]) -> None:
    async def main() -> None:
        async with AsyncClient(service.url, key, backoff_s=0.01) as client:
            await do(client)

    asyncio.run(main())


def test_a_job_from_folder_to_its_last_event(service: RunningService, key: str, booklm: Path) -> None:
    async def do(client: AsyncClient) -> None:
        model = await client.models.from_folder(booklm)
        assert [each.id async for each in client.models.list()] == [model.id]
        job = await client.jobs.create(JobCreate(model=ModelRef(id=model.id)))
        seen = asyncio.create_task(_collected(client.jobs.events(job.id)))
        waiting = asyncio.create_task(client.jobs.wait(job.id, timeout_s=60))
        await asyncio.to_thread(work.succeed, service.database, job.id)
        assert (await waiting).status is JobStatus.SUCCEEDED
        events = await seen
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        assert events[-1].data["to"] == "succeeded"

    _run(service, key, do)


async def _collected(events: AsyncIterator[JobEvent]) -> list[JobEvent]:
    return [event async for event in events]


def test_files_arrive_whole(service: RunningService, key: str, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("so many words " * 10_000)

    async def do(client: AsyncClient) -> None:
        upload = await client.uploads.send(path)
        assert upload.sha256 == sha256_of(path)

    _run(service, key, do)


def test_errors_are_those_of_the_blocking_client(service: RunningService, key: str) -> None:
    async def do(client: AsyncClient) -> None:
        with pytest.raises(NotFoundError):
            await client.jobs.get("job_00000000000000000000000000")

    _run(service, key, do)


def test_a_wait_that_is_cancelled_lets_go_at_once(service: RunningService, key: str, booklm: Path) -> None:
    async def do(client: AsyncClient) -> None:
        model = await client.models.from_folder(booklm)
        job = await client.jobs.create(JobCreate(model=ModelRef(id=model.id)))
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await client.jobs.wait(job.id)
        assert time.monotonic() - began < 5
        await asyncio.to_thread(work.succeed, service.database, job.id)  # so that the thread ends too

    _run(service, key, do)
