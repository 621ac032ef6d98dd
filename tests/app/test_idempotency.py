"""`Idempotency-Key`: what is sent twice is done once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, update

from app.core.clock import now
from app.db.tables import IdempotencyKey, Job
from app.jobs import idempotency, submission, writing
from tests.app.api import Api

KEY = {"Idempotency-Key": "build-42"}


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


def test_a_request_overtaken_by_an_equal_one_is_answered_with_that_one_s_job(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    body, prepare = api.body(), submission.prepare
    overtaking: list[Any] = []

    def overtaken(*args: Any) -> Any:
        if not overtaking:
            overtaking.append(None)
            overtaking.append(api.post("/v1/jobs", KEY, json=body))
        return prepare(*args)

    monkeypatch.setattr(submission, "prepare", overtaken)
    late = api.post("/v1/jobs", KEY, json=body)
    assert (late.status_code, late.headers["Idempotent-Replayed"]) == (202, "true")
    assert late.json()["id"] == overtaking[1].json()["id"]
    assert "Idempotent-Replayed" not in overtaking[1].headers
    assert count_jobs(api) == 1


def test_of_many_equal_requests_at_once_one_makes_a_job(api: Api) -> None:
    body = api.body()
    gate = threading.Barrier(8)

    def send(_: int) -> Any:
        gate.wait()
        return api.post("/v1/jobs", KEY, json=body)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(send, range(8)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sum("Idempotent-Replayed" not in answer.headers for answer in answers) == 1
    assert count_jobs(api) == 1


@pytest.mark.usefixtures("forgetful")
def test_a_request_that_ends_before_its_job_is_committed_leaves_its_key_free(api: Api) -> None:
    body = api.body()
    assert api.post("/v1/jobs", KEY, json=body).status_code == 500
    assert count_jobs(api) == 0
    again = api.post("/v1/jobs", KEY, json=body)
    assert (again.status_code, count_jobs(api)) == (202, 1)
    assert "Idempotent-Replayed" not in again.headers


class _CutError(Exception):
    pass


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first transaction that makes a job ends just before its commit."""
    record = writing.audit.record
    cuts = iter([True])

    def cut(*args: Any) -> None:
        record(*args)
        if next(cuts, False):
            raise _CutError

    monkeypatch.setattr(writing.audit, "record", cut)


def test_a_reservation_that_a_former_version_left_is_taken_over_at_once(api: Api) -> None:
    body = api.body()
    first = api.post("/v1/jobs", KEY, json=body)
    with api.database.write() as session:
        session.execute(update(IdempotencyKey).values(resource_id=None))
    again = api.post("/v1/jobs", KEY, json=body)
    assert again.status_code == 202
    assert again.json()["id"] != first.json()["id"]


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
