"""All files of a job as one tar (POSIX pax), streamed: no temporary file, and the size is known at the start."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence

from app.db.tables import Artifact
from app.storage import BlobStore

MEDIA_TYPE = "application/x-tar"
_END = 2 * tarfile.BLOCKSIZE


def archive_size(artifacts: Sequence[Artifact]) -> int:
    """Bytes of the whole archive."""
    return sum(len(_head(a)) + a.size + _padding(a.size) for a in artifacts) + _END


def archive(artifacts: Sequence[Artifact], store: BlobStore) -> Iterator[bytes]:
    """Yield the archive; files are named `format/path`. The same artifacts give the same bytes."""
    for artifact in artifacts:
        yield _head(artifact)
        yield from store.open(artifact.sha256)
        yield bytes(_padding(artifact.size))
    yield bytes(_END)


def _head(artifact: Artifact) -> bytes:
    info = tarfile.TarInfo(f"{artifact.format}/{artifact.path}")
    info.size = artifact.size
    info.mtime = int(artifact.created_at.timestamp())
    info.mode = 0o644
    return info.tobuf(tarfile.PAX_FORMAT)


def _padding(size: int) -> int:
    return -size % tarfile.BLOCKSIZE
