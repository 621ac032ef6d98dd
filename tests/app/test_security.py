from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from app.core.logging import hide_secrets
from app.core.secret_key import load_pepper
from app.core.security import make_secret
from app.db.session import Database
from app.db.tables import ApiKey
from app.settings import Settings
from tests.app.test_problems import problem

As = Callable[[str], TestClient]
MakeKey = Callable[..., str]


def test_no_key_an_unknown_key_and_a_mistyped_key_answer_401(
    anonymous: TestClient, as_key: As, make_key: MakeKey
) -> None:
    response = anonymous.get("/v1/models")
    problem(response, 401, "unauthorized")
    assert response.headers["WWW-Authenticate"].startswith("Bearer")
    secret = make_key()
    mistyped = secret[:-8] + ("a" if secret[-8] != "a" else "b") + secret[-7:]
    assert "mistyped" in problem(as_key(mistyped).get("/v1/models"), 401, "unauthorized").detail
    for bad in (make_secret("key_" + "0" * 26), "hello", secret.upper()):
        problem(as_key(bad).get("/v1/models"), 401, "unauthorized")
    assert as_key(secret).get("/v1/models").status_code == 200


def test_a_secret_of_another_pepper_is_unknown(
    as_key: As, make_key: MakeKey, database: Database, make_settings: Callable[..., Settings]
) -> None:
    secret = make_key()
    with database.write() as session:
        key = session.scalars(select(ApiKey)).one()
        key.secret_hash = "0" * 64
    problem(as_key(secret).get("/v1/models"), 401, "unauthorized")
    assert make_settings(secret_key="another").secret_key


@pytest.mark.parametrize(
    ("scope", "method", "path"),
    [
        ("models:read", "GET", "/v1/models"),
        ("models:write", "POST", "/v1/uploads"),
        ("jobs:read", "GET", "/v1/workers"),
        ("keys:manage", "GET", "/v1/keys"),
    ],
)
def test_a_scope_opens_its_routes_only(as_key: As, make_key: MakeKey, scope: str, method: str, path: str) -> None:
    body = {"filename": "a", "size": 1}
    others = {"models:read", "models:write", "jobs:read", "keys:manage"} - {scope}
    assert as_key(make_key(scope)).request(method, path, json=body).status_code < 300
    refused = problem(as_key(make_key(*others)).request(method, path, json=body), 403, "insufficient_scope")
    assert scope in refused.detail


def test_the_database_holds_no_secret(make_key: MakeKey, database: Database) -> None:
    secret = make_key()
    with database.read() as session:
        row = session.scalars(select(ApiKey)).one()
        stored = json.dumps([row.id, row.prefix, row.secret_hash, row.name])
    assert secret not in stored
    assert secret[33:] not in stored
    assert secret.startswith(row.prefix)


def test_keys_are_made_listed_and_revoked(client: TestClient, as_key: As) -> None:
    made = client.post("/v1/keys", json={"name": "ci", "scopes": ["models:read"]})
    assert made.status_code == 201
    key = made.json()
    assert made.headers["Location"] == f"/v1/keys/{key['id']}"
    user = as_key(key["secret"])
    assert user.get("/v1/models").status_code == 200
    listed = client.get("/v1/keys").json()["data"]
    assert {entry["name"] for entry in listed} == {"ci", "test"}
    assert all("secret" not in entry for entry in listed)
    assert client.get(f"/v1/keys/{key['id']}").json()["last_used_at"] is not None
    assert client.delete(f"/v1/keys/{key['id']}").status_code == 204
    assert client.delete(f"/v1/keys/{key['id']}").status_code == 204
    problem(user.get("/v1/models"), 401, "key_revoked")


def test_a_key_can_not_give_more_than_it_has(as_key: As, make_key: MakeKey) -> None:
    manager = as_key(make_key("keys:manage"))
    for scope in ("admin", "jobs:write"):
        problem(manager.post("/v1/keys", json={"name": "x", "scopes": [scope]}), 403, "insufficient_scope")


def test_keys_of_another_tenant_do_not_exist(client: TestClient, stranger: TestClient) -> None:
    own = client.get("/v1/keys").json()["data"][0]["id"]
    problem(stranger.get(f"/v1/keys/{own}"), 404, "not_found")
    problem(stranger.delete(f"/v1/keys/{own}"), 404, "not_found")
    assert own not in stranger.get("/v1/keys").text


def test_lists_page_by_cursor_without_gaps_or_repeats(client: TestClient) -> None:
    for number in range(5):
        client.post("/v1/keys", json={"name": f"k{number}", "scopes": ["admin"]})
    seen: list[str] = []
    cursor = None
    while True:
        page = client.get("/v1/keys", params={"limit": 2, **({"cursor": cursor} if cursor else {})}).json()
        seen += [entry["name"] for entry in page["data"]]
        cursor = page["next_cursor"]
        assert page["has_more"] == (cursor is not None)
        if cursor is None:
            break
    assert seen == ["k4", "k3", "k2", "k1", "k0", "test"]


@pytest.mark.parametrize("cursor", ["x", "!!", "MTo", "", "eyJhIjoxfQ", "é", "MToAAA"])
def test_a_made_up_cursor_is_refused_or_finds_nothing_wrong(client: TestClient, cursor: str) -> None:
    response = client.get("/v1/keys", params={"cursor": cursor})
    assert response.status_code in {200, 422}
    assert response.status_code == 422 or response.json()["data"] is not None


def test_the_pepper_file_is_private_and_stays(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings()
    pepper = load_pepper(settings)
    assert load_pepper(settings) == pepper
    assert len(pepper) >= 32
    path = settings.data_dir / "secret.key"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(settings.data_dir.iterdir()) == [path]


def test_logs_hide_keys_tokens_and_passwords() -> None:
    secret = make_secret("key_" + "0" * 26)
    event = {"event": f"using {secret}", "url": "postgresql://u:hunter2@host/db", "authorization": "Bearer x", "n": 3}
    text = json.dumps(dict(hide_secrets(None, "info", event)))
    assert secret not in text
    assert "hunter2" not in text
    assert "Bearer" not in text
    assert '"n": 3' in text


def test_the_access_log_has_the_request_id_and_no_secret(client: TestClient, request_id: str) -> None:
    handler = logging.getLogger().handlers[0]
    assert isinstance(handler, logging.StreamHandler)
    stream = io.StringIO()
    handler.setStream(stream)
    client.get("/v1/models?cursor=MTo&signature=verysecret", headers={"X-Request-Id": request_id})
    line = stream.getvalue()
    assert request_id in line
    assert "/v1/models" in line
    assert "verysecret" not in line
    assert client.headers["Authorization"].removeprefix("Bearer ") not in line
