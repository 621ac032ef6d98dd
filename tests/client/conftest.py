"""The real service on a real socket, with a tenant of its own for each test."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvicorn

from app.core.ids import new_id
from app.core.secret_key import load_pepper
from app.db.migrate import upgrade
from app.db.session import Database
from app.keys.service import add_key, ensure_tenant
from app.main import create_app
from app.settings import Settings
from nupes_client.client import Client


@dataclass(frozen=True)
class RunningService:
    """The API in a thread; no worker, so that a test decides what happens to a job."""

    url: str
    settings: Settings
    database: Database

    def new_key(self) -> str:
        """A key of a new tenant."""
        with self.database.write() as session:
            tenant = ensure_tenant(session, new_id("t"))
            return add_key(session, load_pepper(self.settings), tenant.id, "test", ["admin"])[1]


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """One API for the tests of the client."""
    data_dir = tmp_path_factory.mktemp("data")
    settings = Settings(data_dir=data_dir, queue_prefix="nupes-client-test.", hub=False)
    upgrade(settings.resolved_database_url)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(create_app(settings), log_config=None, timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        database = Database(settings.resolved_database_url)
        yield RunningService(f"http://127.0.0.1:{listener.getsockname()[1]}", settings, database)
        database.dispose()
        server.should_exit = True
        thread.join(10)


@pytest.fixture
def key(service: RunningService) -> str:
    """A key of a new tenant."""
    return service.new_key()


@pytest.fixture
def client(service: RunningService, key: str) -> Iterator[Client]:
    """The SDK as a new tenant."""
    with Client(service.url, key, backoff_s=0.01) as client:
        yield client


@pytest.fixture
def as_user(service: RunningService, key: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The environment in which `nupes` finds the service."""
    monkeypatch.setenv("NUPES_URL", service.url)
    monkeypatch.setenv("NUPES_API_KEY", key)
    monkeypatch.setenv("NUPES_DATA_DIR", str(tmp_path / "none"))
