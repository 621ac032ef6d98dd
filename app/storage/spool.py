"""A temporary file that is hashed while it is written, and gone unless it is kept."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from app.storage.errors import DiskFullError

_SUFFIX = ".part"
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextmanager
def full_disk_is_typed() -> Iterator[None]:
    """Turn the operating system's "no space left" into `DiskFullError`."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFullError(f"no room left to store the content: {error.strerror}") from error
        raise


def drop_stale(folder: Path, before: datetime) -> int:
    """Remove spools that nobody has written to since `before`; return their bytes."""
    gained = 0
    for path in folder.glob(f"*{_SUFFIX}"):
        try:
            info = path.stat()
        except FileNotFoundError:  # it was finished meanwhile
            continue
        if info.st_mtime < before.timestamp():
            path.unlink(missing_ok=True)
            gained += info.st_size
    return gained


class Spool:
    """Bytes on their way into a store. Use as a context manager; leaving it removes what no store has taken."""

    def __init__(self, folder: Path) -> None:
        with full_disk_is_typed():
            folder.mkdir(parents=True, exist_ok=True)
            self.path = folder / f"{secrets.token_hex(16)}{_SUFFIX}"
            self._file = self.path.open("xb")
        self._hash = hashlib.sha256()
        self.size = 0

    @property
    def sha256(self) -> str:
        """Checksum of what was written so far."""
        return self._hash.hexdigest()

    def write(self, chunk: bytes | bytearray | memoryview) -> None:
        """Append; raises `DiskFullError`."""
        with full_disk_is_typed():
            self._file.write(chunk)
        self._hash.update(chunk)
        self.size += len(chunk)

    def finish(self) -> None:
        """Make the bytes durable."""
        with full_disk_is_typed():
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

    def move_to(self, place: Path) -> None:
        """Make it a file of the store."""
        self.path.replace(place)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close and remove the file, if it is still there."""
        try:
            self._file.close()  # flushes, which fails again on a full disk
        except OSError:
            pass
        finally:
            self.path.unlink(missing_ok=True)
