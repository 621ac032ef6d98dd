"""Downloads arrive whole, checked, and inside the folder they were sent to, or not at all."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path

import pytest

from nupes_client.client import Client
from nupes_client.errors import ChecksumError, NotFoundError, UnsafePathError
from nupes_client.resources.artifacts import safe_path
from nupes_client.schemas.artifacts import Artifact
from tests.client.raw_server import RawServer, answer, raw_server

CONTENT = bytes(range(256)) * 40


def artifact(path: str = "model.safetensors", content: bytes = CONTENT) -> Artifact:
    return Artifact(
        id="art_1",
        job_id="job_1",
        format="nupes",
        path=path,
        size=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        media_type="application/octet-stream",
        created_at=datetime.now(UTC),
        content_url="/v1/artifacts/art_1/content",
    )


def client(server: RawServer) -> Client:
    return Client(server.url, "key", backoff_s=0.01)


def partial(content: bytes, start: int) -> bytes:
    total = len(CONTENT)
    return answer("206 Partial Content", content, Content_Range=f"bytes {start}-{total - 1}/{total}")


def test_a_transfer_that_breaks_is_resumed_where_it_broke(tmp_path: Path) -> None:
    cut = answer("200 OK", CONTENT[:3000], announced=len(CONTENT))
    with raw_server(cut, partial(CONTENT[3000:], 3000)) as server:
        path = client(server).artifacts.download(artifact(), tmp_path)
        assert "range: bytes=3000-" in server.requests[1].lower()
        assert f'if-range: "sha256-{artifact().sha256}"' in server.requests[1].lower()
    assert path.read_bytes() == CONTENT
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_later_call_takes_over_what_an_earlier_one_left(tmp_path: Path) -> None:
    with (
        raw_server(answer("200 OK", CONTENT[:3000], announced=len(CONTENT)), answer("404 Not Found")) as server,
        pytest.raises(NotFoundError),
    ):
        client(server).artifacts.download(artifact(), tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    with raw_server(partial(CONTENT[3000:], 3000)) as server:
        assert client(server).artifacts.download(artifact(), tmp_path).read_bytes() == CONTENT


def test_a_file_that_is_there_already_counts_apart_and_a_damaged_one_is_fetched_again(tmp_path: Path) -> None:
    arrived: list[int] = []
    kept: list[int] = []
    with raw_server(answer("200 OK", CONTENT), answer("200 OK", CONTENT)) as server:
        for _ in range(2):
            path = client(server).artifacts.download(artifact(), tmp_path, advance=arrived.append, kept=kept.append)
        assert (sum(arrived), kept, len(server.requests)) == (len(CONTENT), [len(CONTENT)], 1)
        path.write_bytes(b"x" + CONTENT[1:])
        client(server).artifacts.download(artifact(), tmp_path, advance=arrived.append, kept=kept.append)
    assert (sum(arrived), kept) == (2 * len(CONTENT), [len(CONTENT)])
    assert path.read_bytes() == CONTENT


def test_a_server_that_ignores_the_range_is_read_from_the_start(tmp_path: Path) -> None:
    cut = answer("200 OK", CONTENT[:3000], announced=len(CONTENT))
    with raw_server(cut, answer("200 OK", CONTENT)) as server:
        assert client(server).artifacts.download(artifact(), tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("content", [b"\0" * len(CONTENT), CONTENT + b"more"], ids=["other bytes", "too many"])
def test_wrong_bytes_leave_no_file(tmp_path: Path, content: bytes) -> None:
    with raw_server(answer("200 OK", content)) as server, pytest.raises(ChecksumError, match="announced"):
        client(server).artifacts.download(artifact(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_file_is_downloaded_too(tmp_path: Path) -> None:
    with raw_server(answer("200 OK")) as server:
        assert client(server).artifacts.download(artifact(content=b""), tmp_path).read_bytes() == b""


def test_a_file_that_is_there_is_not_fetched_again(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(CONTENT)
    with raw_server(answer("500 Internal Server Error")) as server:
        client(server).artifacts.download(artifact(), tmp_path)
        assert server.requests == []


@pytest.mark.parametrize(
    "name", ["../x", "a/../../x", "/etc/passwd", "", ".", "a\\..\\x", "C:x", "a/\0b", "a\nb", "a/..", "\x1b[2J"]
)
def test_a_name_that_leaves_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnsafePathError):
        safe_path(tmp_path, name)


def test_a_symbolic_link_does_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    target, outside = tmp_path / "out", tmp_path / "outside"
    target.mkdir()
    outside.mkdir()
    (target / "sub").symlink_to(outside)
    (target / "file").symlink_to(outside / "file")
    for name in ("sub/x", "file"):
        with pytest.raises(UnsafePathError, match="symbolic link"):
            safe_path(target, name)


def test_a_plain_name_in_a_subfolder_is_fine(tmp_path: Path) -> None:
    assert safe_path(tmp_path, "tokenizer/vocab.json") == tmp_path / "tokenizer" / "vocab.json"
