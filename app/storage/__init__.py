"""Content-addressed blobs: one interface, a local folder and S3-compatible storage behind it."""

from __future__ import annotations

from app.storage.blob import Blob, BlobStore, Incoming, StoredBlob
from app.storage.errors import (
    BlobNotFoundError,
    ChecksumMismatchError,
    DiskFullError,
    PartialBusyError,
    StorageError,
)
from app.storage.opening import open_store
from app.storage.partial import Partial
from app.storage.spool import Spool

__all__ = [
    "Blob",
    "BlobNotFoundError",
    "BlobStore",
    "ChecksumMismatchError",
    "DiskFullError",
    "Incoming",
    "Partial",
    "PartialBusyError",
    "Spool",
    "StorageError",
    "StoredBlob",
    "open_store",
]
