"""The whole service as its users run it: `nupes up` in a child process, on the settings of a lane."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from app.settings import Settings
from nupes_client.client import Client

READY_S = 90.0


@dataclass(frozen=True)
class Stack:
    """A running service.

    Attributes:
        url, api_key: where and how to talk to it.
        pid: of `nupes up`.
        log: what it and its children printed so far.
    """

    url: str
    api_key: str
    pid: int
    log: Path

    def client(self) -> Client:
        """A new SDK client."""
        return Client(self.url, self.api_key)


@contextmanager
def running_stack(
    settings: Settings, *, workers: int = 1, environment: dict[str, str] | None = None
) -> Iterator[Stack]:
    """Start `nupes up` on a free port, wait until it is ready, stop it on leaving and insist that it stopped."""
    ready, log = settings.data_dir.with_name("ready.json"), settings.data_dir.with_name("up.log")
    command = [str(Path(sys.executable).with_name("nupes")), "up", "--port", "0", "--workers", str(workers)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--ready-file", str(ready)],
            env={**os.environ, **as_environment(settings), **(environment or {})},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        credentials = _await_ready(process, ready, log)
        yield Stack(credentials["url"], credentials["api_key"], process.pid, log)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            raise AssertionError(f"`nupes up` did not stop:\n{log.read_text()[-4000:]}") from None


def as_environment(settings: Settings) -> dict[str, str]:
    """The `NUPES_*` variables that make a child process read the same settings."""
    values = settings.model_dump(exclude_unset=True, exclude_none=True)
    return {f"NUPES_{name.upper()}": _plain(value) for name, value in values.items()}


def _plain(value: object) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)


def _await_ready(process: subprocess.Popen[bytes], ready: Path, log: Path) -> dict[str, str]:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline and process.poll() is None:
        if ready.exists() and ready.stat().st_size:
            return dict(json.loads(ready.read_text()))
        time.sleep(0.05)
    raise AssertionError(f"the service did not come up:\n{log.read_text()[-4000:]}")
