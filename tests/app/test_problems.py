from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import func, select

from app.core.deps import ReadSession, WriteSession, after_commit
from app.core.problems import MEDIA_TYPE
from app.core.security import make_secret
from app.db.session import Database
from app.db.tables import Tenant
from app.main import create_app
from app.settings import Settings
from nupes_client.schemas.problems import Problem

BODY = {"filename": "a", "size": 1}


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    """Errors look the same whatever the database."""
    return sqlite_url


def problem(response: Any, status: int, code: str) -> Problem:
    """Check the shape every error shares."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == MEDIA_TYPE
    parsed = Problem.model_validate(response.json())
    assert (parsed.status, parsed.code, parsed.type) == (status, code, f"urn:nupes:problem:{code}")
    assert parsed.request_id == response.headers["X-Request-Id"]
    assert parsed.title
    assert parsed.detail
    return parsed


def test_unknown_path_and_method_answer_problems(client: TestClient) -> None:
    found = problem(client.get("/v1/nothing"), 404, "not_found")
    assert found.instance == "/v1/nothing"
    assert "/openapi.json" in (found.hint or "")
    response = client.delete("/v1/models")
    problem(response, 405, "method_not_allowed")
    assert response.headers["allow"]


@pytest.mark.parametrize(
    ("body", "pointer", "code"),
    [
        ({"filename": "a"}, "/size", "missing"),
        ({**BODY, "size": -1}, "/size", "greater_than_equal"),
        ({**BODY, "size": "many"}, "/size", "int_parsing"),
        ({**BODY, "colour": "red"}, "/colour", "extra_forbidden"),
        ({**BODY, "sha256": "0"}, "/sha256", "string_pattern_mismatch"),
    ],
)
def test_an_invalid_field_is_named_by_its_pointer(client: TestClient, body: Any, pointer: str, code: str) -> None:
    errors = problem(client.post("/v1/uploads", json=body), 422, "validation_error").errors
    assert errors
    assert [(error.pointer, error.code) for error in errors] == [(pointer, code)]


def test_a_body_that_is_not_announced_as_json_is_told_how_to_be(client: TestClient) -> None:
    response = client.post("/v1/jobs", content=b"{}", headers={"Content-Type": "application/x-www-form-urlencoded"})
    assert "Content-Type: application/json" in problem(response, 422, "validation_error").detail


def test_pointers_leave_out_what_pydantic_adds_for_unions(client: TestClient) -> None:
    files = [{"path": "a/../b", "upload_id": "upl_x"}, {"path": "config.json"}]
    response = client.post("/v1/models", json={"source": {"type": "upload", "files": files}})
    errors = problem(response, 422, "validation_error").errors
    assert errors
    assert [error.pointer for error in errors] == ["/source/files/0/path", "/source/files/1/upload_id"]


def test_a_query_parameter_is_named(client: TestClient) -> None:
    errors = problem(client.get("/v1/models?limit=201"), 422, "validation_error").errors
    assert errors
    assert errors[0].pointer == "/query/limit"


@pytest.mark.parametrize("content", [b"{", b'{"a": 1', b"[" * 100_000, b'{"size": NaN}', b"\xff\xfe", b"", b"null"])
def test_broken_json_is_refused(client: TestClient, content: bytes) -> None:
    response = client.post("/v1/uploads", content=content, headers={"Content-Type": "application/json"})
    assert response.status_code in {400, 422}
    problem(response, response.status_code, response.json()["code"])


def test_text_that_utf8_can_not_hold_is_refused(client: TestClient) -> None:
    surrogate = '{"filename": "\\ud800", "size": 1}'
    response = client.post("/v1/uploads", content=surrogate, headers={"Content-Type": "application/json"})
    problem(response, 422, "validation_error")


def test_a_huge_number_is_refused_or_too_large(client: TestClient) -> None:
    problem(client.post("/v1/uploads", json={**BODY, "size": 10**30}), 413, "too_large")


def test_a_large_body_is_refused_before_and_while_it_is_read(client: TestClient, settings: Settings) -> None:
    body = b'{"filename": "' + b"a" * settings.max_body_bytes + b'", "size": 1}'
    headers = {"Content-Type": "application/json"}
    problem(client.post("/v1/uploads", content=body, headers=headers), 413, "too_large")
    pieces = (body[start : start + 65536] for start in range(0, len(body), 65536))
    problem(client.post("/v1/uploads", content=pieces, headers=headers), 413, "too_large")


def test_a_request_id_is_kept_when_it_is_well_formed(client: TestClient, request_id: str) -> None:
    assert client.get("/livez", headers={"X-Request-Id": request_id}).headers["X-Request-Id"] == request_id
    for bad in ("short", "x" * 65, "has space in it", "semi;colon-semi"):
        assert client.get("/livez", headers={"X-Request-Id": bad}).headers["X-Request-Id"].startswith("req_")


@pytest.fixture
def failing(settings: Settings) -> FastAPI:
    app = create_app(settings)

    @app.post("/tenants/{name}")
    def add_tenant(name: str, session: WriteSession) -> dict[str, int]:
        session.add(Tenant(name=name))
        after_commit(session, lambda: app.state.committed.append(name))
        return {}

    @app.get("/bug")
    def bug() -> None:
        raise RuntimeError("password=hunter2")

    @app.get("/read")
    def read(session: ReadSession) -> int:
        return session.scalar(select(func.count()).select_from(Tenant)) or 0

    app.state.committed = []
    return app


def test_an_unexpected_error_is_a_problem_that_tells_nothing(failing: FastAPI) -> None:
    with TestClient(failing) as client:
        response = client.get("/bug")
    assert problem(response, 500, "internal").retryable
    assert "hunter2" not in response.text


def test_a_commit_that_fails_is_answered_as_an_error_and_runs_no_hook(failing: FastAPI) -> None:
    with TestClient(failing) as client:
        assert client.post("/tenants/a").status_code == 200
        problem(client.post("/tenants/a"), 500, "internal")
    assert failing.state.committed == ["a"]


def test_the_commit_comes_before_the_answer(failing: FastAPI, database: Database) -> None:
    """Looks at the database from another connection at the very moment the head of the answer is sent."""
    seen: list[int | None] = []

    async def spy(scope: Any, receive: Any, send: Any) -> None:
        async def send_and_look(message: Any) -> None:
            if message["type"] == "http.response.start":
                with database.read() as session:
                    seen.append(session.scalar(select(func.count()).select_from(Tenant)))
            await send(message)

        await failing(scope, receive, send_and_look if scope["type"] == "http" else send)

    with TestClient(spy) as client:
        client.post("/tenants/a")
    assert seen == [1]


def test_a_dead_database_is_a_retryable_503(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings(database_url="postgresql://nobody@127.0.0.1:1/none", secret_key="x")
    with TestClient(create_app(settings)) as client:
        secret = make_secret("key_" + "0" * 26)
        response = client.get("/v1/models", headers={"Authorization": f"Bearer {secret}"})
    assert problem(response, 503, "database_unavailable").retryable
    assert response.headers["Retry-After"]


def test_every_operation_documents_its_errors_as_problems(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    assert "HTTPValidationError" not in document["components"]["schemas"]
    for path, item in document["paths"].items():
        for operation in item.values():
            responses = operation["responses"]
            assert "500" in responses
            if path.startswith("/v1"):
                assert {"401", "403"} <= responses.keys()
            for status, answer in responses.items():
                if status.startswith(("4", "5")) and path != "/readyz":
                    assert answer["content"][MEDIA_TYPE]["schema"]["$ref"].endswith("/Problem"), (path, status)
