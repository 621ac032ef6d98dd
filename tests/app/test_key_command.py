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


def test_a_key_made_on_the_command_line_opens_the_service(settings: Settings) -> None:
    made = subprocess.run(
        [sys.executable, "-m", "app.keys", "create", "--tenant", "acme", "--name", "ci", "--scope", "jobs:read"],
        env={**os.environ, **as_environment(settings)},
        capture_output=True,
        text=True,
        check=True,
    )
    with TestClient(create_app(settings)) as client:
        answer = client.get("/v1/jobs", headers={"Authorization": f"Bearer {made.stdout.strip()}"})
        assert answer.status_code == httpx.codes.OK
        refused = client.get("/v1/keys", headers={"Authorization": f"Bearer {made.stdout.strip()}"})
        assert refused.status_code == httpx.codes.FORBIDDEN
