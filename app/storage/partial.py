"""Files that grow over several requests and outlive the process that writes them.

What is on the disk is the truth: the length of the file is how far the upload has come. One writer at a time holds a
file lock, which the kernel drops with the process, so that no crash leaves an upload locked.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from app.storage.errors import PartialBusyError
from app.storage.spool import full_disk_is_typed

if TYPE_CHECKING:
    from hashlib import _Hash

_READ_BYTES = 1 << 20
_REMEMBERED = 256
_MODE = 0o600


class Digests:
    """Running checksums of the files this process wrote to last: the next piece need not read them again."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, tuple[int, _Hash]] = OrderedDict()
        self._lock = threading.Lock()

    def keep(self, name: str, size: int, digest: _Hash) -> None:
        """Remember the checksum of the first `size` bytes."""
        with self._lock:
            self._known[name] = (size, digest)
            self._known.move_to_end(name)
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)

    def take(self, name: str, most: int) -> tuple[int, _Hash]:
        """Return how many of the first `most` bytes are hashed, and the checksum; (0, a new one) when none is known."""
        with self._lock:
            size, digest = self._known.pop(name, (0, hashlib.sha256()))
        return (size, digest) if size <= most else (0, hashlib.sha256())


class Partials:
    """A folder of partial files by name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._digests = Digests()

    def open(self, name: str) -> Partial:
        """Open a file to append to it, made when it is not there; use as a context manager.

        Raises:
            PartialBusyError: somebody else writes to it.
            DiskFullError: no room for another file.
        """
        with full_disk_is_typed():
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            return Partial(self._folder / name, self._digests)

    def size(self, name: str) -> int:
        """Bytes of a file that would survive a power cut; 0 when there is none."""
        try:
            descriptor = os.open(self._folder / name, os.O_RDONLY)
        except FileNotFoundError:
            return 0
        try:
            size = os.fstat(descriptor).st_size
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return size

    def drop(self, name: str) -> None:
        """Remove a file, also under the hands of its writer, whose bytes then go nowhere."""
        (self._folder / name).unlink(missing_ok=True)

    def untouched_since(self, before: datetime) -> Iterator[str]:
        """Names of the files that nobody has written to since a moment."""
        for path in self._folder.glob("*"):
            try:
                if path.stat().st_mtime < before.timestamp():
                    yield path.name
            except FileNotFoundError:  # it was finished meanwhile
                continue


class Partial:
    """One partial file, locked. Leaving its `with` block keeps the bytes and releases the lock."""

    def __init__(self, path: Path, digests: Digests) -> None:
        self.path = path
        self._digests = digests
        self._descriptor = _open_locked(path)
        self.size = self.start = os.fstat(self._descriptor).st_size
        self._hashed, self._hash = digests.take(path.name, self.size)
        self._at_start: _Hash | None = None

    @property
    def sha256(self) -> str:
        """Checksum of all bytes; reads those that another process wrote."""
        self._catch_up()
        return self._hash.hexdigest()

    def write(self, chunk: bytes | bytearray) -> None:
        """Append.

        Raises:
            DiskFullError: no room; call `cut`, as a part of the chunk may stand there.
        """
        self._catch_up()
        with full_disk_is_typed(), memoryview(chunk) as view:
            written = 0
            while written < len(view):
                written += os.write(self._descriptor, view[written:])
        self._hash.update(chunk)
        self.size += len(chunk)
        self._hashed = self.size

    def cut(self) -> None:
        """Take back what was written since the file was opened. A file that the store has too is only dropped."""
        if os.fstat(self._descriptor).st_nlink != 1 or not _is_at(self._descriptor, self.path):
            self.drop()
            return
        os.ftruncate(self._descriptor, self.start)
        self.size = self.start
        if self._at_start is not None:
            self._hash, self._hashed = self._at_start, self.start

    def finish(self) -> None:
        """Make the bytes durable."""
        with full_disk_is_typed():
            os.fsync(self._descriptor)

    def move_to(self, place: Path) -> None:
        """Give the file a second name: the first one stays until the upload is known to be complete."""
        try:
            os.link(self.path, place)
        except FileExistsError:
            return
        except OSError:  # a disk without links
            self.path.replace(place)

    def drop(self) -> None:
        """Remove the file; only the one that is open, not a new one of the same name."""
        if _is_at(self._descriptor, self.path):
            self.path.unlink(missing_ok=True)
        self._hashed, self._hash = 0, hashlib.sha256()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Release the lock."""
        self._digests.keep(self.path.name, self._hashed, self._hash)
        os.close(self._descriptor)

    def _catch_up(self) -> None:
        while self._hashed < self.size:
            chunk = os.pread(self._descriptor, min(_READ_BYTES, self.size - self._hashed), self._hashed)
            self._hash.update(chunk)
            self._hashed += len(chunk)
        if self._at_start is None:
            self._at_start = self._hash.copy()


def _open_locked(path: Path) -> int:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, _MODE)
    except PermissionError:  # read-only: it is complete and stands in the store under its second name
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_at(descriptor, path):  # finished or dropped between opening and locking
            raise PartialBusyError(path.name)
    except BlockingIOError:
        os.close(descriptor)
        raise PartialBusyError(path.name) from None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(there, os.fstat(descriptor))
