"""The one interface of the blob store. Content is named by its SHA-256, so equal files are stored once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from app.storage.partial import Partials
from app.storage.spool import Spool

CHUNK_BYTES = 1 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Blob:
    """Stored bytes: their checksum (64 hex digits) and size."""

    sha256: str
    size: int


@dataclass(frozen=True)
class StoredBlob:
    """A blob as the store lists it."""

    sha256: str
    size: int
    stored_at: datetime


class Incoming(Protocol):
    """A complete local file on its way into the store."""

    path: Path
    size: int

    @property
    def sha256(self) -> str:
        """Checksum of its bytes."""

    def finish(self) -> None:
        """Make the bytes durable."""

    def move_to(self, place: Path) -> None:
        """Make it a file of the store."""


class BlobStore(Protocol):
    """A place for immutable content. All methods raise `StorageError` when the store does not answer."""

    partials: Partials
    """Uploads that are under way, always on a disk of this machine."""

    def put_file(self, path: Path, *, move: bool = False, sha256: str | None = None) -> Blob:
        """Store the content of a file.

        Args:
            path: the file.
            move: the caller needs the file no more, so it may be taken instead of copied.
            sha256: what the content must hash to.

        Raises:
            ChecksumMismatchError: it hashes to something else; nothing is stored.
            DiskFullError: no room; nothing is stored.
        """

    def put_stream(self, chunks: Iterable[bytes], *, sha256: str | None = None) -> Blob:
        """Store bytes as they come; raises as `put_file`."""

    def spool(self) -> Spool:
        """A file to write to piece by piece; hand it to `commit`, or leave its `with` block to drop it."""

    def commit(self, incoming: Incoming) -> Blob:
        """Store what was written to a spool or to a partial file; the latter stays until it is dropped."""

    def open(self, sha256: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Return the bytes from `start` to before `end` in chunks.

        Raises:
            BlobNotFoundError: not stored. Raised by the call itself, not by the first chunk.
        """

    def link(self, sha256: str, disposition: str, media_type: str, seconds: int) -> str | None:
        """A URL that serves the content to anybody for some seconds; None where the store hands out none.

        Args:
            sha256: the content.
            disposition: the `Content-Disposition` to serve it with.
            media_type: the `Content-Type` to serve it with.
            seconds: until the link expires.

        Raises:
            BlobNotFoundError: not stored, where the store hands out links.
        """

    def fetch_to(self, sha256: str, path: Path) -> None:
        """Put the content at `path`, as a hard link where possible: do not write to it.

        Raises:
            BlobNotFoundError: not stored.
            ChecksumMismatchError: the store handed out other bytes; nothing is left at `path`.
            DiskFullError: no room; nothing is left at `path`.
        """

    def exists(self, sha256: str) -> bool:
        """Whether the content is stored."""

    def size(self, sha256: str) -> int:
        """Bytes of the content; raises `BlobNotFoundError`."""

    def list(self) -> Iterator[StoredBlob]:
        """All blobs but doomed ones, in no order."""

    def doom(self, sha256: str) -> None:
        """Move the content aside, the first step to delete it. Whoever asks for it before `purge` gets it back."""

    def doomed(self) -> Iterator[StoredBlob]:
        """Doomed blobs; `stored_at` is when they were doomed."""

    def restore(self, sha256: str) -> bool:
        """Take doomed content back; False when there is none."""

    def purge(self, sha256: str) -> None:
        """Delete doomed content for good. The same content stored again meanwhile is another copy, and stays."""

    def drop_stale_spools(self, before: datetime) -> int:
        """Remove spools last written before a moment, left by a process that was killed; return their bytes."""

    def free_bytes(self) -> int:
        """Room on the disk that incoming bytes go through."""

    def check(self) -> None:
        """Raise `StorageError` when the store can not be used."""


def checked_sha256(sha256: str) -> str:
    """Return `sha256` if it is one: it becomes part of a path.

    Raises:
        ValueError: it is not 64 lower-case hex digits.
    """
    if not _SHA256.fullmatch(sha256):
        raise ValueError(f"{sha256!r} is no SHA-256 in lower-case hex")
    return sha256
