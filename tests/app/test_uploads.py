from __future__ import annotations

import base64
import hashlib
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import update

from app.core.clock import now
from app.db.session import Database
from app.db.tables import Upload
from app.main import create_app
from app.settings import Settings
from app.storage import BlobStore
from app.uploads import service
from tests.app.conftest import Sender
from tests.app.serving import serve
from tests.app.test_problems import problem

CONTENT = bytes(range(256)) * 8192 + b"end"  # 2 MiB and a bit: several pieces
SHA256 = hashlib.sha256(CONTENT).hexdigest()
Leftovers = Callable[[], list[Path]]


def put(client: TestClient, upload: dict[str, object], content: object, **headers: str) -> httpx.Response:
    response: httpx.Response = client.put(f"/v1/uploads/{upload['id']}/content", content=content, headers=headers)
    return response


def status_of(client: TestClient, upload: dict[str, object]) -> str:
    return str(client.get(f"/v1/uploads/{upload['id']}").json()["status"])


def test_an_upload_is_announced_sent_and_complete(client: TestClient, send: Sender, store: BlobStore) -> None:
    upload = send.announce(CONTENT, sha256=SHA256)
    assert upload["status"] == "pending"
    response = put(client, upload, CONTENT)
    assert response.status_code == 200
    assert response.json()["status"] == "complete"
    assert response.json()["sha256"] == SHA256
    digest = base64.b64encode(hashlib.sha256(CONTENT).digest()).decode()
    assert response.headers["Repr-Digest"] == f"sha-256=:{digest}:"
    assert client.get(f"/v1/uploads/{upload['id']}").json() == response.json()
    assert b"".join(store.open(SHA256)) == CONTENT


def test_the_announcement_says_where_it_is(client: TestClient) -> None:
    response = client.post("/v1/uploads", json={"filename": "../../etc/passwd", "size": 1})
    assert response.headers["Location"] == f"/v1/uploads/{response.json()['id']}"


def test_an_empty_file_is_a_file(client: TestClient, send: Sender) -> None:
    assert put(client, send.announce(b""), b"").json()["status"] == "complete"


def test_a_wrong_checksum_keeps_nothing_and_can_be_sent_again(
    client: TestClient, send: Sender, leftovers: Leftovers, store: BlobStore
) -> None:
    upload = send.announce(CONTENT, sha256=SHA256)
    wrong = b"?" + CONTENT[1:]
    refused = problem(put(client, upload, wrong), 422, "checksum_mismatch")
    assert SHA256 in refused.detail
    assert status_of(client, upload) == "pending"
    assert leftovers() == []
    assert list(store.list()) == []
    assert put(client, upload, CONTENT).status_code == 200


@pytest.mark.parametrize("chunked", [False, True])
def test_too_many_bytes_are_too_large(client: TestClient, send: Sender, leftovers: Leftovers, chunked: bool) -> None:
    upload = send.announce(CONTENT)
    body = iter([CONTENT, b"more"]) if chunked else CONTENT + b"more"
    problem(put(client, upload, body), 413, "too_large")
    assert status_of(client, upload) == "pending"
    assert leftovers() == []


@pytest.mark.parametrize("chunked", [False, True])
def test_too_few_bytes_are_incomplete(client: TestClient, send: Sender, leftovers: Leftovers, chunked: bool) -> None:
    upload = send.announce(CONTENT)
    body = iter([CONTENT[:-1]]) if chunked else CONTENT[:-1]
    problem(put(client, upload, body), 422, "upload_incomplete")
    assert status_of(client, upload) == "pending"
    assert leftovers() == []


def test_a_compressed_body_is_refused(client: TestClient, send: Sender) -> None:
    problem(put(client, send.announce(b"x"), b"x", **{"Content-Encoding": "gzip"}), 415, "unsupported_media_type")


def test_sending_again_is_idempotent_and_other_content_conflicts(client: TestClient, send: Sender) -> None:
    upload = send.announce(CONTENT)
    first = put(client, upload, CONTENT)
    again = put(client, upload, CONTENT)
    assert (again.status_code, again.json()) == (200, first.json())
    assert again.headers["Repr-Digest"] == first.headers["Repr-Digest"]
    problem(put(client, upload, b"?" + CONTENT[1:]), 409, "upload_complete")
    assert client.get(f"/v1/uploads/{upload['id']}").json()["sha256"] == SHA256


def test_an_announcement_over_the_limit_is_refused(client: TestClient, settings: Settings) -> None:
    body = {"filename": "f", "size": settings.max_upload_bytes + 1}
    problem(client.post("/v1/uploads", json=body), 413, "too_large")


def test_what_would_fill_the_disk_is_refused_before_the_first_byte(
    client: TestClient, send: Sender, app: FastAPI, settings: Settings, leftovers: Leftovers
) -> None:
    upload = send.announce(CONTENT)
    app.state.settings = settings.model_copy(update={"min_free_disk_bytes": 1 << 60})
    seen: list[int] = []

    def body() -> Iterator[bytes]:
        seen.append(1)
        yield CONTENT

    refused = problem(put(client, upload, CONTENT), 507, "disk_full")
    assert refused.retryable
    assert leftovers() == []
    app.state.settings = settings
    assert put(client, upload, CONTENT).status_code == 200


def test_a_disk_that_fills_up_on_the_way_leaves_nothing(
    client: TestClient, send: Sender, leftovers: Leftovers, store: BlobStore
) -> None:
    """A limit on the size of files that this process may write stands in for the end of the disk."""
    upload = send.announce(CONTENT)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, limits[1]))
    try:
        response = put(client, upload, CONTENT)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    problem(response, 507, "disk_full")
    assert leftovers() == []
    assert list(store.list()) == []
    assert status_of(client, upload) == "pending"
    assert put(client, upload, CONTENT).status_code == 200


def test_a_connection_that_breaks_leaves_nothing(settings: Settings, make_key: Callable[..., str]) -> None:
    headers = {"Authorization": f"Bearer {make_key()}"}
    incoming = settings.data_dir / "blobs" / "incoming"
    with serve(create_app(settings)) as url, httpx.Client(base_url=url, headers=headers) as client:
        upload = client.post("/v1/uploads", json={"filename": "f", "size": len(CONTENT)}).json()
        target = urlsplit(url)
        with socket.create_connection((target.hostname, target.port)) as raw:
            head = f"PUT /v1/uploads/{upload['id']}/content HTTP/1.1\r\nHost: x\r\nContent-Length: {len(CONTENT)}\r\n"
            raw.sendall(f"{head}Authorization: {headers['Authorization']}\r\n\r\n".encode() + CONTENT[:1_500_000])
            _wait(lambda: any(incoming.glob("*")))
        _wait(lambda: not any(incoming.glob("*")))
        assert client.get(f"/v1/uploads/{upload['id']}").json()["status"] == "pending"
        assert client.put(f"/v1/uploads/{upload['id']}/content", content=CONTENT).status_code == 200


def test_two_at_once_complete_it_once(settings: Settings, make_key: Callable[..., str]) -> None:
    headers = {"Authorization": f"Bearer {make_key()}"}
    with serve(create_app(settings)) as url, httpx.Client(base_url=url, headers=headers) as client:
        upload = client.post("/v1/uploads", json={"filename": "f", "size": len(CONTENT)}).json()
        contents = [CONTENT, CONTENT, b"?" + CONTENT[1:]]
        statuses: list[int] = []

        def send_one(content: bytes) -> None:
            statuses.append(client.put(f"/v1/uploads/{upload['id']}/content", content=content).status_code)

        threads = [threading.Thread(target=send_one, args=(content,)) for content in contents]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        kept = client.get(f"/v1/uploads/{upload['id']}").json()["sha256"]
    same = [hashlib.sha256(content).hexdigest() == kept for content in contents]
    assert statuses.count(200) == sum(same)
    assert statuses.count(409) == len(same) - sum(same)


def test_what_a_tenant_may_keep_is_counted_before_the_first_byte(
    client: TestClient, stranger: TestClient, send: Sender, app: FastAPI, settings: Settings
) -> None:
    app.state.settings = settings.model_copy(update={"quota_stored_bytes": 2500})
    send.upload(b"a" * 1000)
    send.upload(b"a" * 1000)  # the same content counts once
    send.announce(b"b" * 1000)
    refused = client.post("/v1/uploads", json={"filename": "c", "size": 501})
    assert "2000 of the 2500" in problem(refused, 403, "quota_exceeded").detail
    assert stranger.post("/v1/uploads", json={"filename": "c", "size": 501}).status_code == 201
    assert client.post("/v1/uploads", json={"filename": "c", "size": 500}).status_code == 201


def test_the_same_checksum_announced_again_is_the_same_upload_to_be_resumed(client: TestClient, send: Sender) -> None:
    first = send.announce(CONTENT, sha256=SHA256)
    headers = {"Tus-Resumable": "1.0.0", "Content-Type": "application/offset+octet-stream", "Upload-Offset": "0"}
    sent = client.patch(f"/v1/uploads/{first['id']}", content=CONTENT[:1000], headers=headers)
    assert sent.status_code == 204
    again = send.announce(CONTENT, sha256=SHA256)
    assert (again["id"], again["offset"]) == (first["id"], 1000)
    assert again["expires_at"] > first["expires_at"]


def test_an_upload_can_be_forgotten(client: TestClient, send: Sender) -> None:
    upload = send.upload(b"x")
    assert client.delete(f"/v1/uploads/{upload['id']}").status_code == 204
    problem(client.get(f"/v1/uploads/{upload['id']}"), 404, "not_found")
    problem(client.delete(f"/v1/uploads/{upload['id']}"), 404, "not_found")


def test_an_upload_expires(client: TestClient, send: Sender, database: Database) -> None:
    upload = send.upload(b"x")
    with database.write() as session:
        session.execute(update(Upload).values(expires_at=now() - timedelta(seconds=1)))
    problem(client.get(f"/v1/uploads/{upload['id']}"), 404, "not_found")
    problem(put(client, upload, b"x"), 404, "not_found")
    with database.write() as session:
        assert service.purge_expired(session) == 1


def test_text_that_a_database_can_not_hold_is_no_internal_error(client: TestClient) -> None:
    """PostgreSQL stores no NUL character; SQLite does."""
    assert client.post("/v1/uploads", json={"filename": "a\x00b", "size": 1}).status_code in {201, 422}
    assert client.get("/v1/uploads/%00").status_code in {404, 422}


def _wait(condition: Callable[[], bool]) -> None:

    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
