"""Uploads that resume, by the tus protocol: the specification's statuses, a real client, and every way to break off."""

from __future__ import annotations

import base64
import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import update
from tusclient.client import TusClient
from tusclient.exceptions import TusCommunicationError

from app.core.clock import now
from app.db.session import Database
from app.db.tables import Upload
from app.main import create_app
from app.settings import Settings
from app.storage import BlobStore
from tests.app.conftest import Sender
from tests.app.serving import serve
from tests.app.test_problems import problem
from tests.servers import free_port
from tests.stack import as_environment

CONTENT = bytes(range(256)) * 12_000  # 3 MB: several pieces
SHA256 = hashlib.sha256(CONTENT).hexdigest()
TUS = {"Tus-Resumable": "1.0.0"}
CHUNK = {**TUS, "Content-Type": "application/offset+octet-stream"}


def b64(value: bytes | str) -> str:
    return base64.b64encode(value.encode() if isinstance(value, str) else value).decode()


def begin(client: httpx.Client, content: bytes = CONTENT, **metadata: str) -> str:
    pairs = ",".join(f"{key} {b64(value)}" for key, value in metadata.items())
    headers = {**TUS, "Upload-Length": str(len(content)), **({"Upload-Metadata": pairs} if pairs else {})}
    response = client.post("/v1/uploads", headers=headers)
    assert response.status_code == 201, response.text
    return str(response.headers["Location"])


def patch(client: httpx.Client, url: str, content: Any, offset: int = 0, **headers: str) -> httpx.Response:
    return client.patch(url, content=content, headers={**CHUNK, "Upload-Offset": str(offset), **headers})


def offset(client: httpx.Client, url: str) -> int:
    response = client.head(url, headers=TUS)
    assert response.status_code == 200
    return int(response.headers["Upload-Offset"])


@pytest.fixture
def settings(make_settings: Callable[..., Settings], sqlite_url: str) -> Settings:
    """What needs SQL here is tested on both databases in test_uploads."""
    return make_settings(database_url=sqlite_url)


@pytest.fixture
def partials(settings: Settings) -> Callable[[], list[int]]:
    """Sizes of the partial files in the local store."""
    folder = settings.data_dir / "blobs" / "partial"
    return lambda: [path.stat().st_size for path in folder.glob("*")]


def test_options_tell_what_is_spoken(client: TestClient, settings: Settings) -> None:
    answer = client.options("/v1/uploads")
    assert answer.status_code == 204
    assert answer.headers["Tus-Version"] == "1.0.0"
    assert answer.headers["Tus-Max-Size"] == str(settings.max_upload_bytes)
    assert set(answer.headers["Tus-Extension"].split(",")) >= {"creation", "checksum", "expiration", "termination"}
    assert answer.headers["Tus-Checksum-Algorithm"] == "sha1,sha256"


def test_pieces_become_the_file_and_each_is_acknowledged(
    client: TestClient, store: BlobStore, partials: Callable[[], list[int]]
) -> None:
    url = begin(client, filename="päper.bin", sha256=SHA256)
    assert offset(client, url) == 0
    for start in range(0, len(CONTENT), 1_000_000):
        answer = patch(client, url, CONTENT[start : start + 1_000_000], start)
        assert (answer.status_code, answer.headers["Tus-Resumable"]) == (204, "1.0.0")
        assert int(answer.headers["Upload-Offset"]) == min(start + 1_000_000, len(CONTENT))
        assert "GMT" in answer.headers["Upload-Expires"]
    head = client.head(url, headers=TUS)
    assert head.headers["Upload-Length"] == head.headers["Upload-Offset"] == str(len(CONTENT))
    assert head.headers["Upload-Metadata"] == f"filename {b64('päper.bin')},sha256 {b64(SHA256)}"
    assert head.headers["Cache-Control"] == "no-store"
    upload = client.get(url).json()
    assert (upload["status"], upload["sha256"], upload["filename"]) == ("complete", SHA256, "päper.bin")
    assert b"".join(store.open(SHA256)) == CONTENT
    assert partials() == []
    assert patch(client, url, b"", len(CONTENT)).status_code == 204


def test_an_upload_announced_as_json_takes_pieces_and_one_sent_in_part_takes_a_whole(
    client: TestClient, send: Sender, partials: Callable[[], list[int]]
) -> None:
    upload = send.announce(CONTENT)
    url = f"/v1/uploads/{upload['id']}"
    assert patch(client, url, CONTENT[:1000]).status_code == 204
    assert client.get(url).json()["offset"] == 1000
    assert client.put(f"{url}/content", content=CONTENT).json()["status"] == "complete"
    assert partials() == []


def test_bytes_can_come_with_the_creation_and_an_empty_file_needs_none(client: TestClient) -> None:
    headers = {**CHUNK, "Upload-Length": str(len(CONTENT))}
    answer = client.post("/v1/uploads", content=CONTENT[:5000], headers=headers)
    assert (answer.status_code, answer.headers["Upload-Offset"]) == (201, "5000")
    assert offset(client, answer.headers["Location"]) == 5000
    assert client.get(begin(client, b"")).json()["status"] == "complete"


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"Tus-Resumable": "0.2.2"}, 412, "tus_version"),
        ({"Tus-Resumable": None}, 412, "tus_version"),
        ({"Content-Type": "application/octet-stream"}, 415, "unsupported_media_type"),
        ({"Content-Encoding": "gzip"}, 415, "unsupported_media_type"),
        ({"Upload-Offset": "7"}, 409, "offset_mismatch"),
        ({"Upload-Offset": "-1"}, 400, "malformed_header"),
        ({"Upload-Offset": None}, 400, "malformed_header"),
        ({"Upload-Checksum": f"md5 {b64(b'x')}"}, 400, "malformed_header"),
        ({"Upload-Checksum": "sha1 !"}, 400, "malformed_header"),
        ({"Upload-Checksum": f"sha1 {b64(b'x' * 20)}"}, 460, "checksum_mismatch"),
        ({"Upload-Checksum": f"sha256 {b64(b'x' * 32)}"}, 460, "checksum_mismatch"),
    ],
)
def test_a_chunk_that_does_not_fit_is_refused_and_not_kept(
    changes: dict[str, str | None], status: int, code: str, client: TestClient
) -> None:
    url = begin(client)
    headers = {**CHUNK, "Upload-Offset": "0", **changes}
    answer = client.patch(url, content=b"abc", headers={k: v for k, v in headers.items() if v is not None})
    problem(answer, status, code)
    if status == 412:
        assert answer.headers["Tus-Version"] == "1.0.0"
    if status == 409:
        assert answer.headers["Upload-Offset"] == "0"
    assert offset(client, url) == 0


@pytest.mark.parametrize("algorithm", ["sha1", "sha256"])
def test_a_chunk_with_the_right_checksum_is_kept_and_a_wrong_one_after_it_is_not(
    algorithm: str, client: TestClient
) -> None:
    url = begin(client)
    digest = hashlib.new(algorithm, CONTENT[:1000]).digest()
    good = {"Upload-Checksum": f"{algorithm} {b64(digest)}"}
    assert patch(client, url, CONTENT[:1000], **good).status_code == 204
    problem(patch(client, url, CONTENT[:1000], 1000, **{"Upload-Checksum": "sha1 AAAA"}), 460, "checksum_mismatch")
    assert patch(client, url, CONTENT[1000:], 1000).status_code == 204
    assert client.get(url).json()["sha256"] == SHA256


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Upload-Length": "many"},
        {"Upload-Length": "9" * 30},
        {"Upload-Defer-Length": "1"},
        {"Upload-Length": "1", "Upload-Metadata": "filename ???"},
        {"Upload-Length": "1", "Upload-Metadata": "a YQ==,a YQ=="},
        {"Upload-Length": "1", "Upload-Metadata": "x" * 5000},
        {"Upload-Length": "1", "Upload-Metadata": f"sha256 {b64('short')}"},
        {"Upload-Length": "1", "Upload-Metadata": f"filename {b64(chr(0))}"},
    ],
)
def test_a_malformed_creation_is_refused(headers: dict[str, str], client: TestClient) -> None:
    problem(client.post("/v1/uploads", headers={**TUS, **headers}), 400, "malformed_header")


@pytest.mark.parametrize("chunked", [False, True])
def test_more_bytes_than_announced_are_not_kept(chunked: bool, client: TestClient) -> None:
    url = begin(client)
    body = iter([CONTENT, b"more"]) if chunked else CONTENT + b"more"
    problem(patch(client, url, body), 413, "too_large")
    assert offset(client, url) == 0


def test_a_file_that_is_not_the_announced_one_starts_over(
    client: TestClient, store: BlobStore, partials: Callable[[], list[int]]
) -> None:
    url = begin(client, sha256=SHA256)
    patch(client, url, b"?" + CONTENT[1:1000])
    problem(patch(client, url, CONTENT[1000:], 1000), 422, "checksum_mismatch")
    assert (offset(client, url), list(store.list()), partials()) == (0, [], [])
    assert patch(client, url, CONTENT).status_code == 204


def test_a_deleted_or_expired_upload_is_gone_with_its_bytes(
    client: TestClient, database: Database, partials: Callable[[], list[int]]
) -> None:
    url = begin(client)
    patch(client, url, CONTENT[:1000])
    assert client.delete(url, headers=TUS).status_code == 204
    assert partials() == []
    assert client.head(url, headers=TUS).status_code == 404
    problem(patch(client, url, CONTENT[1000:], 1000), 404, "not_found")
    expired = begin(client)
    with database.write() as session:
        session.execute(update(Upload).values(expires_at=now()))
    problem(patch(client, expired, CONTENT), 404, "not_found")
    assert partials() == []


def test_progress_puts_the_expiry_off(client: TestClient, settings: Settings, app: FastAPI) -> None:
    url = begin(client)
    before = client.get(url).json()["expires_at"]
    app.state.settings = settings.model_copy(update={"upload_ttl_s": settings.upload_ttl_s + 60})
    patch(client, url, CONTENT[:1000])
    assert client.get(url).json()["expires_at"] > before


def test_another_tenant_sees_no_upload(client: TestClient, stranger: TestClient) -> None:
    url = begin(client)
    assert stranger.head(url, headers=TUS).status_code == 404
    problem(patch(stranger, url, CONTENT), 404, "not_found")
    assert offset(client, url) == 0


def test_a_method_can_be_overridden(client: TestClient) -> None:
    url = begin(client)
    headers = {**CHUNK, "Upload-Offset": "0", "X-HTTP-Method-Override": "PATCH"}
    assert client.post(url, content=CONTENT, headers=headers).status_code == 204
    assert client.get(url).json()["status"] == "complete"


def test_a_disk_that_fills_up_takes_the_chunk_back(client: TestClient, store: BlobStore) -> None:
    """A limit on the size of files that this process may write stands in for the end of the disk."""
    import resource

    url = begin(client)
    patch(client, url, CONTENT[:1000])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, limits[1]))
    try:
        refused = patch(client, url, CONTENT[1000:], 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert problem(refused, 507, "disk_full").retryable
    assert (offset(client, url), list(store.list())) == (1000, [])
    assert patch(client, url, CONTENT[1000:], 1000).status_code == 204
    assert client.get(url).json()["sha256"] == SHA256


def test_what_can_not_fit_on_the_disk_is_not_announced(client: TestClient, app: FastAPI, settings: Settings) -> None:
    app.state.settings = settings.model_copy(update={"min_free_disk_bytes": 1 << 60})
    problem(client.post("/v1/uploads", headers={**TUS, "Upload-Length": "1"}), 507, "disk_full")


# --- over a real connection


@pytest.fixture
def key(make_key: Callable[..., str]) -> dict[str, str]:
    return {"Authorization": f"Bearer {make_key()}"}


def connect(url: str) -> socket.socket:
    target = urlsplit(url)
    return socket.create_connection((target.hostname, target.port), timeout=30)


def patch_head(upload: str, key: dict[str, str], length: int, start: int = 0) -> bytes:
    lines = {**CHUNK, **key, "Host": "x", "Upload-Offset": str(start), "Content-Length": str(length)}
    head = "\r\n".join(f"{name}: {value}" for name, value in lines.items())
    return f"PATCH {upload} HTTP/1.1\r\n{head}\r\n\r\n".encode()


def wait(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_real_client_uploads_resumes_and_checks(settings: Settings, key: dict[str, str]) -> None:
    with serve(create_app(settings)) as url, httpx.Client(base_url=url, headers=key) as http:
        tus = TusClient(f"{url}/v1/uploads", headers=key)
        options: dict[str, Any] = {"chunk_size": 700_000, "metadata": {"filename": "m.bin"}, "upload_checksum": True}
        first = tus.uploader(file_stream=BytesIO(CONTENT), **options)
        first.upload(stop_at=1_400_000)
        again = tus.uploader(file_stream=BytesIO(CONTENT), url=first.url, **options)
        assert again.offset == 1_400_000
        again.upload()
        upload = http.get(urlsplit(first.url).path).json()
        assert (upload["status"], upload["sha256"], upload["filename"]) == ("complete", SHA256, "m.bin")
        http.delete(urlsplit(first.url).path)
        with pytest.raises(TusCommunicationError):
            tus.uploader(file_stream=BytesIO(CONTENT), url=first.url, **options).upload()


def test_a_client_that_dies_loses_nothing_that_arrived(settings: Settings, key: dict[str, str]) -> None:
    with serve(create_app(settings)) as url, httpx.Client(base_url=url, headers=key) as http:
        upload = begin(http)
        with connect(url) as raw:
            raw.sendall(patch_head(upload, key, len(CONTENT)) + CONTENT[:1_500_000])
        wait(lambda: offset(http, upload) == 1_500_000)
        wait(lambda: patch(http, upload, CONTENT[1_500_000:], 1_500_000).status_code == 204)
        assert http.get(upload).json()["sha256"] == SHA256


def test_a_client_that_stops_sending_is_cut_off_and_keeps_what_arrived(settings: Settings, key: dict[str, str]) -> None:
    impatient = settings.model_copy(update={"upload_stall_s": 0.5})
    with serve(create_app(impatient)) as url, httpx.Client(base_url=url, headers=key) as http:
        upload = begin(http)
        with connect(url) as raw:
            raw.sendall(patch_head(upload, key, len(CONTENT)) + CONTENT[:1_200_000])
            assert raw.recv(1000).startswith(b"HTTP/1.1 408")
        assert offset(http, upload) == 1_200_000
        assert patch(http, upload, CONTENT[1_200_000:], 1_200_000).status_code == 204
        whole = http.post("/v1/uploads", json={"filename": "f", "size": len(CONTENT)}).json()["id"]
        with connect(url) as raw:
            head = patch_head(f"/v1/uploads/{whole}/content", key, len(CONTENT)).replace(b"PATCH", b"PUT", 1)
            raw.sendall(head + CONTENT[:1000])
            assert raw.recv(1000).startswith(b"HTTP/1.1 408")


def test_of_two_writers_one_waits(settings: Settings, key: dict[str, str]) -> None:
    with serve(create_app(settings)) as url, httpx.Client(base_url=url, headers=key) as http:
        upload = begin(http)
        with connect(url) as raw:
            raw.sendall(patch_head(upload, key, len(CONTENT)) + CONTENT[:1_500_000])
            wait(lambda: offset(http, upload) >= 1_000_000)
            problem(patch(http, upload, CONTENT), 423, "upload_busy")
            raw.sendall(CONTENT[1_500_000:])
            assert raw.recv(1000).startswith(b"HTTP/1.1 204")
        assert http.get(upload).json()["sha256"] == SHA256


def test_many_writers_at_once_make_one_whole_file(settings: Settings, key: dict[str, str]) -> None:
    with serve(create_app(settings)) as url, httpx.Client(base_url=url, headers=key) as http:
        upload = begin(http, sha256=SHA256)
        statuses: list[int] = []

        def push() -> None:
            while statuses.count(204) < 8:
                at = http.get(upload).json()["offset"]
                statuses.append(patch(http, upload, CONTENT[at : at + 400_000], at).status_code)

        threads = [threading.Thread(target=push) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(statuses) <= {204, 409, 423}
        assert http.get(upload).json()["sha256"] == SHA256


@contextmanager
def api_process(settings: Settings, port: int) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "uvicorn", "app.main:create_app", "--factory", "--port", str(port)]
    with (settings.data_dir / "api.log").open("ab") as log:
        process = subprocess.Popen(
            command,
            env={**os.environ, **as_environment(settings)},
            stdout=log,
            stderr=log,
            cwd=Path(__file__).parents[2],
        )
    try:
        wait(lambda: _answers(port), 120)
        yield process
    finally:
        process.kill()
        process.wait()


def _answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/livez").is_success
    except httpx.TransportError:
        return False


def test_a_killed_server_goes_on_where_it_was(settings: Settings, key: dict[str, str]) -> None:
    port = free_port()
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=key, timeout=60) as http:
        with api_process(settings, port) as process:
            upload = begin(http, sha256=SHA256)
            assert patch(http, upload, CONTENT[:500_000]).status_code == 204
            with connect(str(http.base_url)) as raw:
                raw.sendall(patch_head(upload, key, len(CONTENT) - 500_000, 500_000))
                raw.sendall(CONTENT[500_000:2_500_000])
                wait(lambda: offset(http, upload) > 500_000)
                process.send_signal(signal.SIGKILL)
                process.wait()
        with api_process(settings, port):
            at = offset(http, upload)
            assert 500_000 < at <= 2_500_000
            assert patch(http, upload, CONTENT[at:], at).status_code == 204
            assert http.get(upload).json()["sha256"] == SHA256


def test_a_server_killed_between_bytes_and_row_completes_when_asked(
    client: TestClient, store: BlobStore, partials: Callable[[], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The blob is stored and the row is not written: the partial file still says that all is there."""
    url = begin(client, sha256=SHA256)
    with monkeypatch.context() as killed:
        killed.setattr("app.uploads.repository.complete", _die)
        assert patch(client, url, CONTENT).status_code == 500
    assert partials() == [len(CONTENT)]
    assert offset(client, url) == len(CONTENT)
    assert client.get(url).json()["sha256"] == SHA256
    assert partials() == []
    assert b"".join(store.open(SHA256)) == CONTENT


def _die(*_: object) -> bool:
    raise RuntimeError("killed")
