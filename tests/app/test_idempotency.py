"""`Idempotency-Key`: what is sent twice is done once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, update

from app.core.clock import now
from app.db.tables import IdempotencyKey, Job
from app.jobs import idempotency, submission
from app.settings import Settings
from tests.app.api import Api, open_api

KEY = {"Idempotency-Key": "build-42"}


@pytest.fixture
def api(settings: Settings) -> Iterator[Api]:
    with open_api(settings) as api:
        yield api


def count_jobs(api: Api) -> int:
    with api.database.read() as session:
        return len(session.scalars(select(Job.id)).all())


def test_the_same_request_again_is_answered_with_the_same_job_as_it_is_now(api: Api) -> None:
    body = api.body()
    first = api.post("/v1/jobs", KEY, json=body)
    assert "Idempotent-Replayed" not in first.headers
    api.post(f"/v1/jobs/{first.json()['id']}/cancel")
    again = api.post("/v1/jobs", KEY, json=dict(reversed(body.items())))
    assert (again.status_code, again.headers["Idempotent-Replayed"]) == (202, "true")
    assert again.headers["Location"] == first.headers["Location"]
    assert (again.json()["id"], again.json()["status"]) == (first.json()["id"], "cancelled")
    assert count_jobs(api) == 1


def test_another_body_under_the_same_key_is_refused(api: Api) -> None:
    model_id = api.add_model()
    api.post("/v1/jobs", KEY, json=api.body(model_id))
    response = api.post("/v1/jobs", KEY, json=api.body(model_id, weights={"bits": 3}))
    assert (response.status_code, response.json()["code"]) == (422, "idempotency_key_reused")
    assert count_jobs(api) == 1


def test_without_a_key_the_same_body_makes_another_job(api: Api) -> None:
    body = api.body()
    assert api.post("/v1/jobs", json=body).json()["id"] != api.post("/v1/jobs", json=body).json()["id"]


def test_a_key_belongs_to_its_tenant(api: Api) -> None:
    other = api.another_tenant()
    first, second = api.post("/v1/jobs", KEY, json=api.body()), other.post("/v1/jobs", KEY, json=other.body())
    assert (first.status_code, second.status_code) == (202, 202)
    assert first.json()["id"] != second.json()["id"]


def test_a_request_that_was_refused_leaves_its_key_free(api: Api) -> None:
    model_id = api.add_model()
    refused = api.post("/v1/jobs", KEY, json=api.body(model_id, layers={"exclude": ["."]}))
    assert refused.status_code == 422
    assert api.post("/v1/jobs", KEY, json=api.body(model_id)).status_code == 202


def test_a_second_request_while_the_first_is_carried_out_is_told_to_come_back(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = api.body()
    prepare = submission.prepare
    inside, go_on = threading.Event(), threading.Event()

    def slow(*args: Any) -> Any:
        inside.set()
        assert go_on.wait(20)
        return prepare(*args)

    monkeypatch.setattr(submission, "prepare", slow)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(api.post, "/v1/jobs", KEY, json=body)
        assert inside.wait(20)
        second = api.post("/v1/jobs", KEY, json=body)
        go_on.set()
    assert (second.status_code, second.json()["code"]) == (409, "idempotency_key_in_use")
    assert second.json()["retryable"] is True
    assert first.result().status_code == 202
    assert api.post("/v1/jobs", KEY, json=body).json()["id"] == first.result().json()["id"]


def test_of_many_equal_requests_at_once_one_makes_a_job(api: Api) -> None:
    body = api.body()
    gate = threading.Barrier(8)

    def send(_: int) -> Any:
        gate.wait()
        return api.post("/v1/jobs", KEY, json=body)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(send, range(8)))
    assert {answer.status_code for answer in answers} <= {202, 409}
    assert len({answer.json()["id"] for answer in answers if answer.status_code == 202}) == 1
    assert count_jobs(api) == 1


def reserve(api: Api, body: dict[str, Any], age_s: float) -> None:
    """What a process leaves that died in the middle of a request."""
    api.post("/v1/jobs", KEY, json=body)
    with api.database.write() as session:
        moment = now() - timedelta(seconds=age_s)
        session.execute(update(IdempotencyKey).values(resource_id=None, created_at=moment))


def test_a_reservation_of_a_process_that_died_is_taken_over(api: Api) -> None:
    body = api.body()
    reserve(api, body, idempotency.RESERVED_S - 30)
    assert api.post("/v1/jobs", KEY, json=body).status_code == 409
    reserve(api, body, idempotency.RESERVED_S + 1)
    assert api.post("/v1/jobs", KEY, json=body).status_code == 202


def test_the_former_holder_of_a_reservation_makes_no_second_job(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    body = api.body()
    prepare = submission.prepare
    taken_over: list[Any] = []

    def overtaken(*args: Any) -> Any:
        if not taken_over:
            taken_over.append(None)
            with api.database.write() as session:
                moment = now() - timedelta(seconds=idempotency.RESERVED_S + 1)
                session.execute(update(IdempotencyKey).values(created_at=moment))
            taken_over.append(api.post("/v1/jobs", KEY, json=body))
        return prepare(*args)

    monkeypatch.setattr(submission, "prepare", overtaken)
    late = api.post("/v1/jobs", KEY, json=body)
    assert (late.status_code, taken_over[1].status_code) == (409, 202)
    assert count_jobs(api) == 1


def test_a_key_is_forgotten_after_a_day(api: Api) -> None:
    model_id = api.add_model()
    api.post("/v1/jobs", KEY, json=api.body(model_id))
    with api.database.write() as session:
        session.execute(update(IdempotencyKey).values(created_at=now() - timedelta(seconds=idempotency.KEPT_S + 1)))
    assert api.post("/v1/jobs", KEY, json=api.body(model_id, weights={"bits": 3})).status_code == 202


@pytest.mark.parametrize("key", ["", " ", "x" * 256, "caf\xe9"])
def test_a_malformed_key_is_refused(api: Api, key: str) -> None:
    response = api.post("/v1/jobs", {"Idempotency-Key": key.encode("latin-1")}, json=api.body())  # type: ignore[dict-item]
    assert (response.status_code, response.json()["code"]) == (422, "invalid_idempotency_key")
