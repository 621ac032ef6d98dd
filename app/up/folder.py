"""The data folder: private, locked by the one service that uses it, with what clients on this machine need."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import IO

from nupes_client.credentials import FILE_NAME, Credentials, save, write_private

LOCK = "up.lock"
CURL_CONFIG = "curl.conf"
OURS = frozenset({LOCK, FILE_NAME, "nupes.db", "secret.key"})


class UpError(Exception):
    """The service can not be started; the message says why and what to do."""


def prepare(folder: Path) -> None:
    """Make the folder, open to its owner alone.

    Raises:
        UpError: it can not be made, or is a folder of something else.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = {path.name for path in folder.iterdir()}
        if names and not names & OURS:
            raise UpError(
                f"{folder} is not empty and not a data folder of NUPES\n  try: --data-dir with a new or empty folder"
            )
        folder.chmod(0o700)
    except OSError as error:
        raise UpError(f"the data folder {folder} can not be used: {error.strerror}\n  try: --data-dir") from error


class FolderLock:
    """Held as long as the service runs; the kernel gives it free whatever way the process ends."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK
        self._file: IO[str] | None = None

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            UpError: another service has it.
        """
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        file = os.fdopen(descriptor, "r+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = file.read().strip() or "unknown"
            file.close()
            raise UpError(
                f"a service is already running on {self._path.parent} ({holder})\n"
                "  try: use that one, stop it, or give another --data-dir"
            ) from None
        self._file = file
        self.describe(f"pid {os.getpid()}, starting")

    def describe(self, holder: str) -> None:
        """Say who holds it."""
        assert self._file is not None, "acquire first"
        self._file.seek(0)
        self._file.truncate()
        self._file.write(holder)
        self._file.flush()

    def release(self) -> None:
        """Give it free."""
        if self._file is not None:
            self._file.close()
            self._file = None


def leave_for_clients(folder: Path, credentials: Credentials) -> None:
    """Write what `nupes` and `curl -K` on this machine read: address and key, 0600."""
    save(folder / FILE_NAME, credentials)
    write_private(folder / CURL_CONFIG, f'header = "Authorization: Bearer {credentials.api_key}"\n')


def write_ready_file(path: Path, credentials: Credentials) -> None:
    """Tell whoever started us that all is ready."""
    content = {"url": credentials.url, "api_key": credentials.api_key, "pid": os.getpid()}
    write_private(path, json.dumps(content) + "\n")
