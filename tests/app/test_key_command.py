"""The key of a service that was not started by `nupes up` comes from a command."""

from __future__ import annotations

import os
import subprocess
import sys

import httpx
from fastapi.testclient import TestClient

from app.main import create_app
from app.settings import Settings
from tests.stack import as_environment


def _create(settings: Settings, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "app.keys", "create", *options],
        env={**os.environ, **as_environment(settings)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_second_key_says_whose_it_is_so_that_nobody_joins_a_tenant_by_accident(settings: Settings) -> None:
    first = _create(settings, "--name", "first")
    assert "key 'first' of tenant 'default', scopes: admin" in first.stderr
    refused = _create(settings, "--name", "second")
    assert refused.returncode == 2
    assert "--tenant NAME is needed: a new one, or one of default" in refused.stderr
    other = _create(settings, "--name", "second", "--tenant", "acme")
    with TestClient(create_app(settings)) as client:
        seen = client.get("/v1/keys", headers={"Authorization": f"Bearer {other.stdout.strip()}"}).json()["data"]
    assert [key["name"] for key in seen] == ["second"]


def test_a_key_made_on_the_command_line_opens_the_service(settings: Settings) -> None:
    made = _create(settings, "--tenant", "acme", "--name", "ci", "--scope", "jobs:read")
    with TestClient(create_app(settings)) as client:
        answer = client.get("/v1/jobs", headers={"Authorization": f"Bearer {made.stdout.strip()}"})
        assert answer.status_code == httpx.codes.OK
        refused = client.get("/v1/keys", headers={"Authorization": f"Bearer {made.stdout.strip()}"})
        assert refused.status_code == httpx.codes.FORBIDDEN
