"""Blobs in a folder: `ab/abcdef…`, written aside and renamed into place."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from io import BufferedReader
from pathlib import Path
from typing import TypeVar

from app.storage.blob import CHUNK_BYTES, Blob, Incoming, StoredBlob, checked_sha256
from app.storage.errors import BlobNotFoundError, ChecksumMismatchError, StorageError
from app.storage.partial import Partials
from app.storage.spool import Spool, drop_stale, full_disk_is_typed

T = TypeVar("T")

_NAME = "[0-9a-f]" * 64
_READ_ONLY = stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH


class LocalStore:
    """A folder on this machine, or on a disk that all machines share. See `BlobStore`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._incoming = root / "incoming"
        self._doomed = root / "doomed"
        self.partials = Partials(root / "partial")
        root.mkdir(mode=0o700, parents=True, exist_ok=True)

    def put_file(self, path: Path, *, move: bool = False, sha256: str | None = None) -> Blob:
        """See `BlobStore`."""
        blob = self._take(path, sha256) if move and self._same_disk(path) else self._copy(path, sha256)
        if move:
            path.unlink(missing_ok=True)
        return blob

    def put_stream(self, chunks: Iterable[bytes], *, sha256: str | None = None) -> Blob:
        """See `BlobStore`."""
        with self.spool() as spool:
            for chunk in chunks:
                spool.write(chunk)
            _expect(sha256, spool.sha256)
            return self.commit(spool)

    def spool(self) -> Spool:
        """See `BlobStore`."""
        return Spool(self._incoming)

    def commit(self, incoming: Incoming) -> Blob:
        """See `BlobStore`."""
        incoming.finish()
        self._adopt(incoming.path, incoming.sha256, incoming.move_to)
        return Blob(incoming.sha256, incoming.size)

    def open(self, sha256: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """See `BlobStore`."""
        return _read(self._reach(sha256, lambda place: place.open("rb")), start, end)

    def link(self, sha256: str, disposition: str, media_type: str, seconds: int) -> str | None:
        """See `BlobStore`: a folder has no links."""
        return None

    def fetch_to(self, sha256: str, path: Path) -> None:
        """See `BlobStore`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        try:
            self._reach(sha256, lambda place: os.link(place, path))
        except OSError:  # another disk, or one without links
            self._copy_out(sha256, path)

    def exists(self, sha256: str) -> bool:
        """See `BlobStore`."""
        try:
            self.size(sha256)
        except BlobNotFoundError:
            return False
        return True

    def size(self, sha256: str) -> int:
        """See `BlobStore`."""
        return self._reach(sha256, Path.stat).st_size

    def list(self) -> Iterator[StoredBlob]:
        """See `BlobStore`."""
        return _listed(self.root.glob("[0-9a-f][0-9a-f]/" + _NAME))

    def doom(self, sha256: str) -> None:
        """See `BlobStore`."""
        place = self._place(sha256)
        self._doomed.mkdir(mode=0o700, exist_ok=True)
        try:
            os.utime(place)  # before the move: a crash in between leaves a blob that looks new, never one long doomed
            place.replace(self._doomed / sha256)
        except FileNotFoundError:
            return

    def doomed(self) -> Iterator[StoredBlob]:
        """See `BlobStore`."""
        return _listed(self._doomed.glob(_NAME))

    def restore(self, sha256: str) -> bool:
        """See `BlobStore`."""
        place = self._place(sha256)
        try:
            (self._doomed / sha256).replace(place)
        except FileNotFoundError:
            return False
        return True

    def purge(self, sha256: str) -> None:
        """See `BlobStore`."""
        (self._doomed / checked_sha256(sha256)).unlink(missing_ok=True)

    def drop_stale_spools(self, before: datetime) -> int:
        """See `BlobStore`."""
        return drop_stale(self._incoming, before)

    def free_bytes(self) -> int:
        """See `BlobStore`."""
        return shutil.disk_usage(self.root).free

    def check(self) -> None:
        """See `BlobStore`."""
        if not os.access(self.root, os.R_OK | os.W_OK | os.X_OK):
            raise StorageError(f"the folder {self.root} is missing or not writable")

    def _reach(self, sha256: str, act: Callable[[Path], T]) -> T:
        """Do something with the file of a blob; one that is doomed comes back, since it is asked for."""
        place = self._place(sha256)
        try:
            return act(place)
        except FileNotFoundError:
            self.restore(sha256)
        try:
            return act(place)
        except FileNotFoundError:
            raise BlobNotFoundError(sha256) from None

    def _place(self, sha256: str) -> Path:
        return self.root / checked_sha256(sha256)[:2] / sha256

    def _same_disk(self, path: Path) -> bool:
        return path.stat().st_dev == self.root.stat().st_dev

    def _copy(self, path: Path, sha256: str | None) -> Blob:
        with path.open("rb") as file:
            return self.put_stream(_read(file, 0, None), sha256=sha256)

    def _take(self, path: Path, sha256: str | None) -> Blob:
        with path.open("rb") as file:
            digest = _file_sha256(file)
            os.fsync(file.fileno())
        _expect(sha256, digest)
        size = path.stat().st_size
        self._adopt(path, digest, path.replace)
        return Blob(digest, size)

    def _adopt(self, path: Path, sha256: str, move_to: Callable[[Path], object]) -> None:
        """Bring a complete file to its place. Content that is there is kept, and counts as stored now."""
        place = self._place(sha256)
        with full_disk_is_typed():
            place.parent.mkdir(exist_ok=True)
            try:
                os.utime(place)
            except FileNotFoundError:
                path.chmod(_READ_ONLY)
                os.utime(path)
                move_to(place)
                _sync_folder(place.parent)

    def _copy_out(self, sha256: str, path: Path) -> None:
        try:
            with full_disk_is_typed(), path.open("wb") as target:
                for chunk in self.open(sha256):
                    target.write(chunk)
        except BaseException:
            path.unlink(missing_ok=True)
            raise


def _listed(paths: Iterable[Path]) -> Iterator[StoredBlob]:
    for path in paths:
        try:
            info = path.stat()
        except FileNotFoundError:  # deleted meanwhile
            continue
        yield StoredBlob(path.name, info.st_size, datetime.fromtimestamp(info.st_mtime, UTC))


def _file_sha256(file: BufferedReader) -> str:
    """Checksum of an open file from its current position on."""
    return hashlib.file_digest(file, "sha256").hexdigest()


def _expect(expected: str | None, actual: str) -> None:
    if expected is not None and expected != actual:
        raise ChecksumMismatchError(expected, actual)


def _read(file: BufferedReader, start: int, end: int | None) -> Iterator[bytes]:
    with file:
        file.seek(start)
        left = (1 << 63) if end is None else end - start
        while left > 0 and (chunk := file.read(min(CHUNK_BYTES, left))):
            left -= len(chunk)
            yield chunk


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
