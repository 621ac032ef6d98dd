"""Delete blobs that no row names any more.

Rows own the bytes; deleting a row deletes no byte. A blob is stored before its row is written, so between the two it
looks like garbage. Two things keep it: only blobs that have been there for a while are looked at, and what nobody
names is moved aside first and deleted a while later, after another look at the rows. Whoever asks for it in between
gets it back. See docs/decisions/008.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from datetime import datetime, timedelta
from itertools import islice

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.core.clock import now
from app.db.session import Database
from app.db.tables import Artifact, Job, JobShardFile, ModelFile, Upload
from app.storage.blob import BlobStore, StoredBlob
from nupes_client.schemas.jobs import JobStatus

_BATCH = 500
_OWNERS = (
    select(Upload.sha256),
    select(ModelFile.sha256),
    select(JobShardFile.sha256),
    select(Artifact.sha256).where(Artifact.expired_at.is_(None)),
)
_HELD = (JobStatus.RUNNING.value, JobStatus.CANCELLING.value)


def collect(database: Database, store: BlobStore, grace: timedelta) -> int:
    """Doom what nobody has named for `grace`, delete what has been doomed for `grace`; return the bytes gained.

    `grace` must be longer than it takes from storing a blob to committing its row. Harmless beside uploads, jobs and
    other collectors.
    """
    before = _settled(database, grace)
    gained = 0
    for blob, needed in _judged(database, (blob for blob in store.doomed() if blob.stored_at < before)):
        if needed:
            store.restore(blob.sha256)
        else:
            store.purge(blob.sha256)
            gained += blob.size
    for blob, needed in _judged(database, (blob for blob in store.list() if blob.stored_at < before)):
        if not needed:
            store.doom(blob.sha256)
    return gained


def named_blobs(session: Session) -> set[str]:
    """Return the digests of all blobs that rows name."""
    return {digest for owner in _OWNERS for digest in session.scalars(owner) if digest}


def _settled(database: Database, grace: timedelta) -> datetime:
    """The moment before which every stored blob has its row: jobs store files long before they end."""
    moment = now() - grace
    with database.read() as session:
        oldest = session.scalar(select(func.min(Job.started_at)).where(Job.status.in_(_HELD)))
    return min(moment, oldest) if oldest else moment


def _judged(database: Database, blobs: Iterable[StoredBlob]) -> Iterator[tuple[StoredBlob, bool]]:
    """Each blob and whether a row names it, asked for in batches."""
    iterator = iter(blobs)
    while batch := list(islice(iterator, _BATCH)):
        with database.read() as session:
            needed = _needed(session, [blob.sha256 for blob in batch])
        yield from ((blob, blob.sha256 in needed) for blob in batch)


def _needed(session: Session, digests: Collection[str]) -> set[str | None]:
    return {
        digest for owner in _OWNERS for digest in session.scalars(owner.where(owner.selected_columns[0].in_(digests)))
    }
