"""Delete blobs that no row names any more.

Rows own the bytes; deleting a row deletes no byte. A blob is written before its row, so only blobs that have been there
for a while are looked at.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from datetime import timedelta
from itertools import islice

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.core.clock import now
from app.db.session import Database
from app.db.tables import Artifact, ModelFile, Upload
from app.storage.blob import BlobStore, StoredBlob

GRACE = timedelta(hours=1)
_BATCH = 500
_OWNERS = (Upload.sha256, ModelFile.sha256, Artifact.sha256)


def collect(database: Database, store: BlobStore, grace: timedelta = GRACE) -> int:
    """Delete blobs older than `grace` that nothing refers to, and bytes of broken uploads; return the bytes gained."""
    before = now() - grace
    gained = store.drop_stale_spools(before)
    for batch in _batches(blob for blob in store.list() if blob.stored_at < before):
        with database.read() as session:
            needed = _needed(session, [blob.sha256 for blob in batch])
        for blob in batch:
            if blob.sha256 not in needed:
                store.delete(blob.sha256)
                gained += blob.size
    return gained


def _batches(blobs: Iterable[StoredBlob]) -> Iterator[list[StoredBlob]]:
    iterator = iter(blobs)
    while batch := list(islice(iterator, _BATCH)):
        yield batch


def _needed(session: Session, digests: Collection[str]) -> set[str | None]:
    return {digest for owner in _OWNERS for digest in session.scalars(select(owner).where(owner.in_(digests)))}
