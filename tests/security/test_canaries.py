"""Secrets that users and operators give away by using the service are nowhere in what it keeps, says or sends."""

from __future__ import annotations

import io
import logging
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from app.settings import Settings
from app.storage import open_store
from nupes_client.schemas.jobs import JobStatus
from tests.app.api import Api, open_api
from tests.hubserver import hub_server
from tests.worker.factory import wait_for_end, worker_log, worker_process, write_tiny_llama
from tests.worker.test_tracing import send_model

CANARY = "canary7e2d"
TOKEN = f"hf_{CANARY}users"
"""That a user stores to have results pushed."""

OPERATORS = {
    "NUPES_SECRET_KEY": f"{CANARY}pepper",
    "NUPES_HUB_TOKEN": f"{CANARY}hub",
    "AWS_ACCESS_KEY_ID": "not-a-secret",
    "AWS_SECRET_ACCESS_KEY": f"{CANARY}aws",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@pytest.fixture
def settings(
    make_settings: Callable[..., Settings], sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Settings]:
    """SQLite, whose file can be read whole, folders as the broker, S3, a hub."""
    for name, value in OPERATORS.items():
        monkeypatch.setenv(name, value)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    boto3.client("s3", endpoint_url=url).create_bucket(Bucket="models")
    try:
        with hub_server() as hub:
            hub.accounts = {TOKEN: {"team"}}
            monkeypatch.setenv("HF_ENDPOINT", hub.url)
            yield make_settings(
                database_url=sqlite_url,
                storage_url="s3://models/nupes",
                s3_endpoint_url=url,
                poll_s=0.5,
                log_level="debug",
            )
    finally:
        server.stop()


def dump(settings: Settings) -> str:
    """Every row of every table."""
    with sqlite3.connect(settings.database_url.removeprefix("sqlite:///")) as connection:
        return "\n".join(connection.iterdump())


def log_of_this_process() -> io.StringIO:
    """What the service in this process writes from now on, as an operator would read it."""
    handler = logging.getLogger().handlers[0]
    assert isinstance(handler, logging.StreamHandler)
    stream = io.StringIO()
    handler.setStream(stream)
    return stream


def messages(settings: Settings) -> str:
    return "\n".join(p.read_text(errors="replace") for p in settings.queue_dir.rglob("*") if p.is_file())


def artifacts(settings: Settings, api: Api, job_id: str) -> bytes:
    store = open_store(settings)
    listed = api.get(f"/v1/jobs/{job_id}/artifacts").json()["data"]
    assert listed
    return b"".join(piece for each in listed for piece in store.open(each["sha256"]))


def test_no_secret_is_in_database_logs_events_artifacts_or_messages(settings: Settings, tmp_path: Path) -> None:
    with open_api(settings) as api:
        log = log_of_this_process()
        made = api.post("/v1/keys", json={"name": "ci", "scopes": ["jobs:read"]}).json()
        rotated = api.post(f"/v1/keys/{made['id']}/rotate").json()
        hook = api.post("/v1/webhooks", json={"url": "https://receiver.invalid/hook"}).json()
        given = [made["secret"], rotated["secret"], api.headers["Authorization"].removeprefix("Bearer ")]
        secrets = [CANARY, hook["secret"].removeprefix("whsec_"), *(secret[33:] for secret in given)]
        assert all(len(secret) > 8 for secret in secrets)
        model = send_model(api, write_tiny_llama(tmp_path / "model"))
        stored = api.post("/v1/secrets", json={"name": "team", "value": TOKEN})
        push = {"repo": "team/model", "secret": stored.json()["name"]}
        job_id = api.post("/v1/jobs", json=api.body(model, push_to_hub=push)).json()["id"]
        queued = messages(settings)
        with worker_process(settings):
            job = wait_for_end(api.database, job_id)
        assert job.status == JobStatus.SUCCEEDED, job.error
        places = {
            "database": dump(settings),
            "messages": queued,
            "log of the service": log.getvalue(),
            "log of the worker": worker_log(settings),
            "job": api.get(f"/v1/jobs/{job_id}").text,
            "report": api.get(f"/v1/jobs/{job_id}/report?format=html").text,
            "secrets": stored.text + api.get("/v1/secrets").text,
            "events": api.get(f"/v1/jobs/{job_id}/events?limit=200").text,
            "audit": api.get("/v1/audit?limit=200").text,
            "artifacts": artifacts(settings, api, job_id).decode("latin-1"),
        }
    assert "/team/model/commit/" in places["job"]
    assert job_id in queued
    for place, text in places.items():
        assert text, place
        assert not [secret for secret in secrets if secret in text], place
