"""Uploads that break and go on: in one call, in the next call, and after the command was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nupes_client.client import Client
from nupes_client.errors import FileChangedError, ServiceUnreachableError
from nupes_client.files import sha256_of
from nupes_client.resources import uploads
from nupes_client.schemas.uploads import UploadStatus
from tests.client.conftest import RunningService
from tests.client.flaky_proxy import Proxy, flaky_proxy

SIZE = 6_000_000


@pytest.fixture
def proxy(service: RunningService) -> Iterator[Proxy]:
    with flaky_proxy(service.url) as proxy:
        yield proxy


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights.bin"
    path.write_bytes(os.urandom(SIZE))
    return path


def test_a_connection_that_breaks_again_and_again_costs_little(proxy: Proxy, key: str, file: Path) -> None:
    proxy.cut_after = 2_000_000
    counted: list[int] = []
    with Client(proxy.url, key, backoff_s=0.01) as client:
        upload = client.uploads.send(file, advance=counted.append)
    assert (upload.status, upload.sha256) == (UploadStatus.COMPLETE, sha256_of(file))
    assert sum(counted) == SIZE
    assert proxy.sent < 2 * SIZE


def test_a_file_larger_than_a_piece_goes_in_pieces(client: Client, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "PIECE_BYTES", 1_000_000)
    counted: list[int] = []
    assert client.uploads.send(file, advance=counted.append).sha256 == sha256_of(file)
    assert sum(counted) == SIZE


def test_the_next_call_goes_on_where_the_last_one_gave_up(proxy: Proxy, key: str, client: Client, file: Path) -> None:
    with Client(proxy.url, key, backoff_s=0.001) as unlucky:
        announced = unlucky.uploads.create(file.name, SIZE, sha256_of(file))
        proxy.cut_after = 2_000_000
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(uploads, "ATTEMPTS_WITHOUT_PROGRESS", 0)
            with pytest.raises(ServiceUnreachableError):
                unlucky.uploads.send(file)
    deadline = time.monotonic() + 30
    while not (had := client.uploads.get(announced.id).offset):
        assert time.monotonic() < deadline
    counted: list[int] = []
    upload = client.uploads.send(file, advance=counted.append)
    assert (upload.id, upload.sha256) == (announced.id, sha256_of(file))
    assert counted[0] >= had > 1_000_000, "what was there is told at once"


def test_a_killed_command_goes_on_when_it_is_given_again(proxy: Proxy, key: str, client: Client, file: Path) -> None:
    nupes = [str(Path(sys.executable).with_name("nupes")), "upload", str(file)]
    environment = {**os.environ, "NUPES_URL": proxy.url, "NUPES_API_KEY": key}
    proxy.pause_s = 0.02
    process = subprocess.Popen(nupes, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while proxy.sent < 3_000_000:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before, proxy.pause_s = proxy.sent, 0.0
    done = subprocess.run(nupes, env=environment, capture_output=True, text=True, check=True)
    assert client.uploads.get(done.stdout.strip()).sha256 == sha256_of(file)
    assert proxy.sent - before < SIZE - 2_000_000


def test_a_file_that_grows_or_shrinks_under_way_is_named(client: Client, file: Path) -> None:
    sha256 = sha256_of(file)
    upload = client.uploads.create(file.name, SIZE, sha256)
    for size in (SIZE + 1, SIZE - 1):
        os.truncate(file, size)
        with pytest.raises(FileChangedError):
            uploads._Sending(client.uploads._transport, upload, file, None).run()
