"""A database and a queue that an earlier version wrote: nothing is lost, and the waiting job is done."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from redis import Redis
from sqlalchemy import Column, Connection, MetaData, insert, text

from app.core.ids import new_id
from app.db.migrate import upgrade
from app.db.session import Database
from app.main import create_app
from app.settings import Settings
from app.storage import open_store
from tests.worker.factory import wait_for_end, worker_process

LEFT = json.loads(Path(__file__).with_name("written_at_0002.json").read_text())
ROWS, COLUMNS = 128, 64
DONE, WAITING = (job["id"] for job in LEFT["tables"]["jobs"])


@pytest.fixture(params=["embedded", "production"])
def settings(request: pytest.FixtureRequest, make_settings: Callable[..., Settings], tmp_path: Path) -> Settings:
    """Settings of a stack on an empty database, with the secret key of then."""
    secret = {"secret_key": LEFT["secret_key"]}
    if request.param == "embedded":
        return make_settings(database_url=f"sqlite:///{tmp_path / 'then.db'}", **secret)
    url = request.getfixturevalue("postgres_url")
    database = Database(make_settings(database_url=url).resolved_database_url)
    with database.engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    database.dispose()
    return make_settings(database_url=url, broker_url=request.getfixturevalue("redis_url"), **secret)


def test_jobs_and_messages_of_an_earlier_version_live_on(settings: Settings) -> None:
    _leave_behind(settings)
    upgrade(settings.resolved_database_url)
    database = Database(settings.resolved_database_url)
    with worker_process(settings):
        job = wait_for_end(database, WAITING)
    database.dispose()
    assert (job.status, job.attempt, job.error) == ("succeeded", 1, None)
    with TestClient(create_app(settings), headers={"Authorization": f"Bearer {LEFT['api_key']}"}) as client:
        listed = client.get("/v1/jobs", params={"label.pipeline": "nightly"}).json()["data"]
        assert [each["id"] for each in listed] == [WAITING, DONE]
        old, new = (client.get(f"/v1/jobs/{each}").json() for each in (DONE, WAITING))
        assert old["result"]["bits_per_weight"] == pytest.approx(4.13671875)
        assert old.keys() == new.keys()
        assert _events(client, DONE) == [
            event["seq"] for event in LEFT["tables"]["job_events"] if event["job_id"] == DONE
        ]
        assert _events(client, WAITING)[:2] == [1, 2]
        assert client.get(f"/v1/jobs/{DONE}/layers").json()["data"][0]["exponent"]
        names = [each["path"] for each in client.get(f"/v1/jobs/{DONE}/artifacts").json()["data"]]
        assert sorted(names) == sorted(each["path"] for each in LEFT["tables"]["artifacts"])


def _events(client: TestClient, job_id: str) -> list[int]:
    return [event["seq"] for event in client.get(f"/v1/jobs/{job_id}/events", params={"limit": 200}).json()["data"]]


def _leave_behind(settings: Settings) -> None:
    """Put the rows, the message and the model of then where they were."""
    upgrade(settings.resolved_database_url, LEFT["revision"])
    database = Database(settings.resolved_database_url)
    with database.engine.begin() as connection:
        _insert(connection, LEFT["tables"])
    database.dispose()
    stored = {open_store(settings).put_stream([content]).sha256 for content in _model_files()}
    assert stored == {file["sha256"] for file in LEFT["tables"]["model_files"]}
    _send(settings, json.dumps(LEFT["message"]).encode())


def _insert(connection: Connection, tables: dict[str, list[dict[str, Any]]]) -> None:
    schema = MetaData()
    schema.reflect(connection)
    for name, rows in tables.items():
        columns = schema.tables[name].columns
        for row in rows:
            values = {key: _value(columns[key], value) for key, value in row.items()}
            connection.execute(insert(schema.tables[name]).values(values))


def _value(column: Column[Any], stored: Any) -> Any:
    """Turn what SQLite stored into what the column of either database takes."""
    if stored is None:
        return None
    kind = column.type.python_type
    if kind is datetime:
        moment = datetime.fromisoformat(stored)
        return moment.replace(tzinfo=UTC) if getattr(column.type, "timezone", False) else moment
    return bool(stored) if kind is bool else stored


def _model_files() -> list[bytes]:
    """Return the files of the model, to the byte: weights are exact in float32."""
    weights = [((i * 7919) % 251 - 125) / 128 for i in range(ROWS * COLUMNS)]
    body = struct.pack(f"<{ROWS * COLUMNS}f", *weights)
    tensor = {"dtype": "F32", "shape": [ROWS, COLUMNS], "data_offsets": [0, len(body)]}
    head = json.dumps({"layer.weight": tensor}).encode()
    head += b" " * (-len(head) % 8)
    return [struct.pack("<Q", len(head)) + head + body, b'{"model_type": "unheard_of"}']


def _send(settings: Settings, message: bytes) -> None:
    queue = f"{settings.queue_prefix}cpu"
    if settings.broker_url:
        Redis.from_url(settings.broker_url).lpush(queue, message)
        return
    folder = settings.queue_dir / queue
    folder.mkdir(parents=True)
    (folder / f"{new_id('msg')}.msg").write_bytes(message)
