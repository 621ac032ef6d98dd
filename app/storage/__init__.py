"""Content-addressed blobs: one interface, a local folder and S3-compatible storage behind it."""

from __future__ import annotations

from app.storage.blob import Blob, BlobStore, StoredBlob
from app.storage.errors import BlobNotFoundError, ChecksumMismatchError, DiskFullError, StorageError
from app.storage.opening import open_store
from app.storage.spool import Spool

__all__ = [
    "Blob",
    "BlobNotFoundError",
    "BlobStore",
    "ChecksumMismatchError",
    "DiskFullError",
    "Spool",
    "StorageError",
    "StoredBlob",
    "open_store",
]
