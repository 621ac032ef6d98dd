"""Requests that were made to break the service: a problem each, never an internal error, never a long answer."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.app.conftest import (  # noqa: F401  # the fixtures of the service
    Sender,
    anonymous,
    app,
    as_key,
    client,
    database,
    make_key,
    send,
)
from tests.app.test_problems import problem
from tests.safetensors_files import CONFIG, folder

ROUTES = ("/v1/uploads", "/v1/models", "/v1/plans", "/v1/jobs", "/v1/keys")
JSON = {"Content-Type": "application/json"}


BODIES: dict[str, bytes] = {
    "half a surrogate pair": b'{"model": {"id": "\\ud800"}, "name": "\\ud800", "filename": "\\udfff", "size": 1}',
    "half a pair in a list": b'{"model": {"id": "x"}, "layers": {"exclude": ["\\ud800"]}}',
    "NUL in a list": b'{"model": {"id": "x"}, "layers": {"exclude": ["a\\u0000"]}}',
    "half a pair as a key": b'{"\\ud800": 1}',
    "half a pair in a label": b'{"model": {"id": "x"}, "labels": {"a": "\\ud800"}}',
    "deep lists": b"[" * 100_000 + b"]" * 100_000,
    "deep objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "a number of ten thousand digits": b'{"model": {"id": "x"}, "seed": ' + b"9" * 10_000 + b"}",
    "infinity": b'{"model": {"id": "x"}, "priority": Infinity}',
    "no number": b'{"model": {"id": "x"}, "timeout_s": NaN}',
    "UTF-16": '{"unknown": 1}'.encode("utf-16"),
    "many unknown fields": json.dumps({f"field{number}": 1 for number in range(20_000)}).encode(),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_hostile_body_is_refused_in_few_words(name: str, client: TestClient) -> None:  # noqa: F811
    for route in ROUTES:
        response = client.post(route, content=BODIES[name], headers=JSON)
        assert response.status_code in {400, 422}, (route, response.text[:500])
        problem(response, response.status_code, response.json()["code"])
        assert len(response.content) < 50_000


@pytest.mark.parametrize("paths", [("a", "a/b"), ("a/b", "a")])
def test_a_file_and_a_folder_of_one_name_are_refused(
    paths: tuple[str, str],
    send: Sender,  # noqa: F811
) -> None:
    files = dict.fromkeys(paths, b"{}")
    problem(send.model(files), 422, "unsafe_file")


UNSTORABLE: dict[str, dict[str, Any]] = {
    "architecture": {"architectures": ["\ud800"]},
    "architecture with NUL": {"architectures": ["a\0b"]},
    "value": {"title": "\ud800"},
    "key": {"\0": 1},
}


@pytest.mark.parametrize("name", UNSTORABLE)
def test_a_configuration_that_no_database_holds_is_taken_or_refused(
    name: str,
    send: Sender,  # noqa: F811
    client: TestClient,  # noqa: F811
) -> None:
    response = send.model(folder(config__json=json.dumps({**CONFIG, **UNSTORABLE[name]}).encode()))
    assert response.status_code in {201, 422}, response.text
    if response.status_code == 201:
        assert client.get(f"/v1/models/{response.json()['id']}").status_code == 200
        assert client.get("/v1/models").status_code == 200
