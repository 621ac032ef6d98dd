"""The service in this process, over ASGI, with keys of two tenants."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from app.core.ids import new_id
from app.core.secret_key import load_pepper
from app.db.session import Database
from app.keys.service import add_key, ensure_tenant
from app.main import create_app
from app.settings import Settings
from app.storage import BlobStore
from tests.app.api import Api, open_api


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    """The database of the service."""
    database = Database(settings.resolved_database_url)
    yield database
    database.dispose()


@pytest.fixture
def api(settings: Settings) -> Iterator[Api]:
    """The service as one tenant sees it, on both databases."""
    with open_api(settings) as api:
        yield api


@pytest.fixture
def lite(make_settings: Callable[..., Settings], sqlite_url: str) -> Iterator[Api]:
    """The same on SQLite alone, for what the database has no part in."""
    with open_api(make_settings(database_url=sqlite_url)) as api:
        yield api


@pytest.fixture
def make_key(settings: Settings, database: Database) -> Callable[..., str]:
    """Make a key: of the tenant `name`, with these scopes."""

    def make(*scopes: str, tenant: str = "first") -> str:
        with database.write() as session:
            owner = ensure_tenant(session, tenant)
            return add_key(session, load_pepper(settings), owner.id, "test", scopes or ("admin",))[1]

    return make


@pytest.fixture
def app(settings: Settings) -> FastAPI:
    """The service; started by the clients."""
    return create_app(settings)


@pytest.fixture
def anonymous(app: FastAPI) -> Iterator[TestClient]:
    """A client without a key."""
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def as_key(app: FastAPI, anonymous: TestClient) -> Callable[[str], TestClient]:
    """Clients of the running service by their secret."""

    def build(secret: str) -> TestClient:
        headers = {"Authorization": f"Bearer {secret}"}
        return TestClient(app, raise_server_exceptions=False, headers=headers)

    return build


@pytest.fixture
def client(as_key: Callable[[str], TestClient], make_key: Callable[..., str]) -> TestClient:
    """A client with all rights in the tenant `first`."""
    return as_key(make_key())


@pytest.fixture
def stranger(as_key: Callable[[str], TestClient], make_key: Callable[..., str]) -> TestClient:
    """A client with all rights in another tenant."""
    return as_key(make_key(tenant="second"))


@pytest.fixture
def store(app: FastAPI, anonymous: TestClient) -> BlobStore:
    """The blob store of the running service."""
    store: BlobStore = app.state.store
    return store


@dataclass(frozen=True)
class Sender:
    """Short ways to send files."""

    client: TestClient

    def announce(self, content: bytes, **fields: Any) -> dict[str, Any]:
        """Announce an upload of this content."""
        body = {"filename": "file", "size": len(content), **fields}
        response = self.client.post("/v1/uploads", json=body)
        assert response.status_code == 201, response.text
        return dict(response.json())

    def upload(self, content: bytes, filename: str = "file") -> dict[str, Any]:
        """Send a file whole."""
        upload = self.announce(content, filename=filename, sha256=hashlib.sha256(content).hexdigest())
        response = self.client.put(f"/v1/uploads/{upload['id']}/content", content=content)
        assert response.status_code == 200, response.text
        return dict(response.json())

    def model(self, files: dict[str, bytes], **fields: Any) -> Any:
        """Send files and ask to make a model of them; returns the response."""
        listed = [{"path": path, "upload_id": self.upload(content, path)["id"]} for path, content in files.items()]
        return self.client.post("/v1/models", json={"source": {"type": "upload", "files": listed}, **fields})


@pytest.fixture
def send(client: TestClient) -> Sender:
    """Sends files as `client`."""
    return Sender(client)


@pytest.fixture
def request_id() -> str:
    """An id that a client may choose."""
    return new_id("req")


@pytest.fixture
def leftovers(settings: Settings) -> Callable[[], list[Path]]:
    """What lies in the spool of the local store."""
    return lambda: list((settings.data_dir / "blobs" / "incoming").glob("*"))
