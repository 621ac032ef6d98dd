"""Requests per minute: of a key over all API processes, of an address that fails to authenticate."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from fastapi.testclient import TestClient

from app.core.ratelimit import RateGuard
from app.core.security import make_secret
from app.main import create_app
from app.settings import Settings
from tests.app.api import Api, open_api
from tests.app.test_problems import problem
from tests.servers import free_port

POLICY = re.compile(r'"requests";q=(\d+);w=60')
STATE = re.compile(r'"requests";r=(\d+);t=(\d+)')


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    """Nothing here depends on the database."""
    return sqlite_url


@pytest.fixture
def limited(make_settings: Callable[..., Settings], database_url: str, broker_url: str) -> Settings:
    """Five requests a minute, counted in memory and in Redis."""
    return make_settings(
        database_url=database_url, broker_url=broker_url, quota_requests_per_minute=5, auth_failures_per_minute=3
    )


@contextmanager
def opened(settings: Settings) -> Iterator[Api]:
    with open_api(settings, ["jobs:read"]) as api:
        yield api


def left(response: object) -> int:
    match = STATE.fullmatch(response.headers["RateLimit"])  # type: ignore[attr-defined]
    assert match
    assert 0 <= int(match[2]) <= 60
    return int(match[1])


def test_every_answer_says_what_is_left_and_the_one_too_many_when_to_come_back(limited: Settings) -> None:
    with opened(limited) as api:
        answers = [api.get("/v1/jobs") for _ in range(4)] + [api.get("/v1/jobs/job_unknown")]
        assert [response.status_code for response in answers] == [200] * 4 + [404]
        assert [left(response) for response in answers] == [4, 3, 2, 1, 0]
        assert POLICY.fullmatch(answers[0].headers["RateLimit-Policy"])[1] == "5"  # type: ignore[index]
        refused = api.get("/v1/jobs")
        assert problem(refused, 429, "rate_limited").retryable
        assert 1 <= int(refused.headers["Retry-After"]) <= 60
        assert left(refused) == 0
        assert api.another_tenant(["jobs:read"]).get("/v1/jobs").status_code == 200


def test_processes_that_share_a_redis_count_together(
    make_settings: Callable[..., Settings], database_url: str, redis_url: str
) -> None:
    settings = make_settings(database_url=database_url, broker_url=redis_url, quota_requests_per_minute=5)
    with opened(settings) as api, TestClient(create_app(settings)) as other:
        answers = [client.get("/v1/jobs", headers=api.headers) for _ in range(3) for client in (api.client, other)]
    assert [response.status_code for response in answers] == [200] * 5 + [429]


def test_without_a_limit_nothing_is_counted(make_settings: Callable[..., Settings], database_url: str) -> None:
    with opened(make_settings(database_url=database_url, quota_requests_per_minute=0)) as api:
        response = api.get("/v1/usage")
    assert "RateLimit" not in response.headers
    assert response.json()["requests_per_minute"]["limit"] is None


def test_an_address_that_guesses_is_slowed_down_and_valid_keys_behind_it_are_not(limited: Settings) -> None:
    with opened(limited) as api:
        guesses = [make_secret("key_" + "0" * 26) for _ in range(4)]
        answers = [api.client.get("/v1/jobs", headers={"Authorization": f"Bearer {guess}"}) for guess in guesses]
        assert [response.status_code for response in answers] == [401, 401, 401, 429]
        assert problem(answers[-1], 429, "too_many_failures").hint
        assert int(answers[-1].headers["Retry-After"]) >= 1
        assert api.get("/v1/jobs").status_code == 200
        assert api.client.get("/v1/jobs").status_code == 401


def test_a_redis_that_is_gone_costs_no_request(make_settings: Callable[..., Settings], database_url: str) -> None:
    url = f"redis://127.0.0.1:{free_port()}/0"
    settings = make_settings(database_url=database_url, rate_limit_url=url, quota_requests_per_minute=5)
    with opened(settings) as api:
        assert [api.get("/v1/jobs").status_code for _ in range(6)] == [200] * 5 + [429]


def test_counting_in_memory_costs_less_than_a_third_of_a_millisecond(make_settings: Callable[..., Settings]) -> None:
    guard = RateGuard(make_settings())

    async def count(times: int) -> None:
        for _ in range(times):
            await guard.count_request("key_a", 10**6)

    asyncio.run(count(1))
    rounds = []
    for _ in range(5):
        started = time.perf_counter()
        asyncio.run(count(200))
        rounds.append((time.perf_counter() - started) / 200)
    assert min(rounds) < 0.0003
