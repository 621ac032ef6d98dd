"""The life of a key: made with an end, used, rotated, revoked; never so that nobody can make another."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from app.core.clock import now
from app.db.session import Database
from app.db.tables import ApiKey
from tests.app.test_problems import problem

As = Callable[[str], TestClient]
MakeKey = Callable[..., str]


def make(client: TestClient, name: str = "ci", scopes: tuple[str, ...] = ("models:read",), **fields: Any) -> Any:
    response = client.post("/v1/keys", json={"name": name, "scopes": [*scopes], **fields})
    assert response.status_code == 201, response.text
    return response.json()


def age(database: Database, key_id: str, **columns: Any) -> None:
    """Set times of a key, as if they had been set earlier."""
    with database.write() as session:
        key = session.get_one(ApiKey, key_id)
        for name, value in columns.items():
            setattr(key, name, value)


def id_of(database: Database, secret: str) -> str:
    with database.read() as session:
        return session.scalars(select(ApiKey.id).where(ApiKey.prefix == secret[:24])).one()


def test_a_key_opens_until_it_expires_and_then_says_so(client: TestClient, as_key: As, database: Database) -> None:
    key = make(client, expires_at=(now() + timedelta(hours=1)).isoformat())
    assert key["expires_at"]
    assert as_key(key["secret"]).get("/v1/models").status_code == 200
    age(database, key["id"], expires_at=now() - timedelta(seconds=1))
    found = problem(as_key(key["secret"]).get("/v1/models"), 401, "key_expired")
    assert "expired at 20" in found.detail
    assert found.hint


@pytest.mark.parametrize("moment", ["2020-01-01T00:00:00Z", "0001-01-01T00:00:00+23:59", "2050-01-01T00:00:00", "soon"])
def test_an_end_that_is_over_or_no_time_is_refused(client: TestClient, moment: str) -> None:
    response = client.post("/v1/keys", json={"name": "x", "scopes": ["jobs:read"], "expires_at": moment})
    assert response.status_code == 422
    errors = problem(response, 422, response.json()["code"]).errors
    assert errors
    assert errors[0].pointer == "/expires_at"


def test_both_secrets_open_while_they_overlap(client: TestClient, as_key: As, database: Database) -> None:
    old = make(client)
    new = client.post(f"/v1/keys/{old['id']}/rotate", json={"overlap_s": 600}).json()
    assert new["id"] == old["id"]
    assert new["secret"] != old["secret"]
    assert new["rotated_at"] < new["previous_until"]
    for secret in (old["secret"], new["secret"]):
        assert as_key(secret).get("/v1/models").status_code == 200
    age(database, old["id"], previous_until=now() - timedelta(seconds=1))
    problem(as_key(old["secret"]).get("/v1/models"), 401, "key_rotated")
    assert as_key(new["secret"]).get("/v1/models").status_code == 200


def test_a_rotation_without_overlap_or_a_second_one_ends_the_older_secret(client: TestClient, as_key: As) -> None:
    first = make(client)
    second = client.post(f"/v1/keys/{first['id']}/rotate", json={"overlap_s": 0}).json()
    problem(as_key(first["secret"]).get("/v1/models"), 401, "key_rotated")
    third = client.post(f"/v1/keys/{first['id']}/rotate").json()
    problem(as_key(first["secret"]).get("/v1/models"), 401, "unauthorized")
    for secret in (second["secret"], third["secret"]):
        assert as_key(secret).get("/v1/models").status_code == 200


def test_only_an_open_key_is_rotated_and_only_by_who_may_do_as_much(
    client: TestClient, as_key: As, make_key: MakeKey, database: Database
) -> None:
    manager = as_key(make_key("keys:manage"))
    strong = id_of(database, client.headers["Authorization"].removeprefix("Bearer "))
    problem(manager.post(f"/v1/keys/{strong}/rotate"), 403, "insufficient_scope")
    key = make(client)
    client.delete(f"/v1/keys/{key['id']}")
    problem(client.post(f"/v1/keys/{key['id']}/rotate"), 409, "key_closed")
    problem(client.post(f"/v1/keys/{key['id']}/rotate", json={"overlap_s": 10**9}), 422, "validation_error")


def test_a_key_may_rotate_itself(client: TestClient, as_key: As, database: Database) -> None:
    own = id_of(database, client.headers["Authorization"].removeprefix("Bearer "))
    new = client.post(f"/v1/keys/{own}/rotate", json={"overlap_s": 0}).json()
    problem(client.get("/v1/models"), 401, "key_rotated")
    assert as_key(new["secret"]).get("/v1/models").status_code == 200


def test_the_last_key_that_manages_keys_stays(client: TestClient, as_key: As, database: Database) -> None:
    own = id_of(database, client.headers["Authorization"].removeprefix("Bearer "))
    make(client, scopes=("jobs:read",))
    found = problem(client.delete(f"/v1/keys/{own}"), 409, "last_managing_key")
    assert "keys:manage" in (found.hint or "")
    other = make(client, scopes=("keys:manage",))
    age(database, other["id"], expires_at=now() - timedelta(seconds=1))
    problem(client.delete(f"/v1/keys/{own}"), 409, "last_managing_key")
    age(database, other["id"], expires_at=None)
    assert client.delete(f"/v1/keys/{own}").status_code == 204
    problem(client.get("/v1/keys"), 401, "key_revoked")
    assert as_key(other["secret"]).get("/v1/keys").status_code == 200


def test_two_keys_that_revoke_each_other_at_once_leave_one(client: TestClient, as_key: As, database: Database) -> None:
    own = id_of(database, client.headers["Authorization"].removeprefix("Bearer "))
    other = make(client, scopes=("admin",))
    start = threading.Barrier(2)

    def revoke(user: TestClient, key_id: str) -> None:
        start.wait()
        user.delete(f"/v1/keys/{key_id}")

    pairs = ((client, other["id"]), (as_key(other["secret"]), own))
    threads = [threading.Thread(target=revoke, args=pair) for pair in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.read() as session:
        left = [key.id for key in session.scalars(select(ApiKey)) if key.revoked_at is None]
    assert len(left) == 1


def test_the_first_key_of_another_tenant_does_not_count(client: TestClient, stranger: TestClient) -> None:
    own = stranger.get("/v1/keys").json()["data"][0]["id"]
    problem(stranger.delete(f"/v1/keys/{own}"), 409, "last_managing_key")
