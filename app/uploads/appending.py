"""Further bytes for an upload that is under way: all that arrives is kept, whatever happens to the connection."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, NoReturn

from starlette.concurrency import run_in_threadpool

from app.core.clock import now
from app.core.problems import NotFoundError, ProblemError, TooLargeError
from app.db.session import Database
from app.db.tables import Upload
from app.settings import Settings
from app.storage import BlobStore, DiskFullError, Partial
from app.uploads import repository, service, tus
from app.uploads.intake import Ending, Received, pump, stalled

if TYPE_CHECKING:
    from hashlib import _Hash


@dataclass(frozen=True)
class Shelf:
    """Where uploads are kept: rows, bytes, and the rules for both."""

    database: Database
    store: BlobStore
    settings: Settings


async def append(shelf: Shelf, tenant_id: str, upload_id: str, chunk: tus.Chunk, body: AsyncIterator[bytes]) -> Upload:
    """Append the bytes of one request; the upload is complete when they were the last.

    Raises:
        NotFoundError: no such upload.
        ProblemError: 409 another offset, 413 too many bytes, 460 checksum, 408 stalled.
        PartialBusyError: another request appends to it.
        DiskFullError, DiskFullProblem: no room. Nothing of this request is kept.
        ValidationProblem: all bytes are there, and are not the ones that were announced; nothing is kept.
    """
    upload = await run_in_threadpool(_load, shelf, tenant_id, upload_id)
    if upload.sha256 is not None:
        _check_offset(chunk, upload.size)
        _check_length(chunk, 0)
        return upload
    with await run_in_threadpool(shelf.store.partials.open, upload_id) as partial:
        await run_in_threadpool(_check, shelf, upload, chunk, partial)
        digest = chunk.checksum.start() if chunk.checksum else None
        try:
            received = await _receive(shelf, upload, partial, body, digest)
            return await run_in_threadpool(_settle, shelf, upload, partial, chunk, received, digest)
        except DiskFullError:
            await run_in_threadpool(partial.cut)
            raise


def complete_if_whole(shelf: Shelf, upload: Upload, offset: int) -> Upload:
    """Complete an upload whose last bytes came, but whose process died before it said so.

    Raises: as `append`.
    """
    if upload.sha256 is not None or offset < upload.size:
        return upload
    with shelf.store.partials.open(upload.id) as partial:
        if partial.size < upload.size:
            return upload
        return _complete(shelf, upload, partial)


def offset_of(store: BlobStore, upload: Upload) -> int:
    """Bytes of an upload that are safe."""
    return store.partials.size(upload.id) if upload.sha256 is None else upload.size


def _load(shelf: Shelf, tenant_id: str, upload_id: str) -> Upload:
    with shelf.database.read() as session:
        return service.get(session, tenant_id, upload_id)


def _check(shelf: Shelf, upload: Upload, chunk: tus.Chunk, partial: Partial) -> None:
    """Look again, now that nobody else appends: what was read before may be over."""
    try:
        current = _load(shelf, upload.tenant_id, upload.id)
    except NotFoundError:
        partial.drop()
        raise
    if current.sha256 is not None:
        partial.drop()
        _check_offset(chunk, current.size)
    _check_offset(chunk, partial.size)
    room = upload.size - partial.size
    _check_length(chunk, room)
    service.check_room(shelf.settings, shelf.store, room)


async def _receive(
    shelf: Shelf, upload: Upload, partial: Partial, body: AsyncIterator[bytes], digest: _Hash | None
) -> Received:
    def write(piece: bytearray) -> None:
        partial.write(piece)
        if digest is not None:
            digest.update(piece)

    return await pump(body, upload.size - partial.size, write, shelf.settings.upload_stall_s)


def _settle(
    shelf: Shelf, upload: Upload, partial: Partial, chunk: tus.Chunk, received: Received, digest: _Hash | None
) -> Upload:
    """Make durable what arrived, or take it back, and say so."""
    if received.ending is Ending.TOO_LONG:
        partial.cut()
        _refuse_length(upload.size - partial.start)
    if chunk.checksum is not None and digest is not None and digest.digest() != chunk.checksum.expected:
        partial.cut()
        raise tus.checksum_mismatch(chunk.checksum, digest.digest())
    if partial.size == upload.size:
        return _complete(shelf, upload, partial)
    partial.finish()
    return _keep_waiting(shelf, upload, received, partial)


def _keep_waiting(shelf: Shelf, upload: Upload, received: Received, partial: Partial) -> Upload:
    expires_at = now() + timedelta(seconds=shelf.settings.upload_ttl_s)
    with shelf.database.write() as session:
        repository.postpone(session, upload.id, expires_at)
    if received.ending is not Ending.WHOLE:
        raise stalled(shelf.settings.upload_stall_s, f"{partial.size} of {upload.size} bytes are kept.")
    upload.expires_at = expires_at
    return upload


def _complete(shelf: Shelf, upload: Upload, partial: Partial) -> Upload:
    try:
        stored = service.finish(shelf.database, shelf.store, upload, partial)
    except (service.WrongContentProblem, NotFoundError):
        partial.drop()
        raise
    partial.drop()
    return stored


def _check_offset(chunk: tus.Chunk, offset: int) -> None:
    if chunk.offset != offset:
        raise ProblemError(
            409,
            "offset_mismatch",
            "Conflict",
            f"Upload-Offset is {chunk.offset}; the upload is at {offset}",
            hint=f"Send the bytes from {offset} on.",
            headers={"Upload-Offset": str(offset)},
        )


def _check_length(chunk: tus.Chunk, room: int) -> None:
    if chunk.length is not None and chunk.length > room:
        _refuse_length(room)


def _refuse_length(room: int) -> NoReturn:
    raise TooLargeError(
        f"{room} bytes of the announced file are missing, and more came", hint="Announce an upload of the right size."
    )
