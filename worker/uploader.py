"""Child that puts the finished artifact into the blob store: `python -m worker.uploader JOB_FOLDER`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from app.settings import Settings
from app.storage import BlobStore, StorageError, open_store
from worker.childmain import run_child
from worker.emitter import Emitter
from worker.reasons import TypedError
from worker.workfolder import JobFolder

_MEDIA_TYPES = {".json": "application/json", ".md": "text/markdown", ".txt": "text/plain", ".jinja": "text/plain"}
_MEDIA_TYPES_BY_NAME = {"SHA256SUMS": "text/plain", "LICENSE": "text/plain", "NOTICE": "text/plain"}


def upload(folder: JobFolder, emitter: Emitter) -> None:
    """Store every file of every format and report it. The rows are written by the supervisor, last of all."""
    store = open_store(Settings())
    files = list(_files(folder))
    emitter.progress("publishing", 0, len(files), "files")
    for count, (name, path) in enumerate(files, start=1):
        _put(store, name, path, emitter, folder)
        emitter.progress("publishing", count, len(files), "files")


def _files(folder: JobFolder) -> Iterator[tuple[str, Path]]:
    orders = folder.read_orders()
    for name in orders.get("publish", orders["formats"]):
        root = folder.out / name
        yield from ((name, path) for path in sorted(root.rglob("*")) if path.is_file())


def _put(store: BlobStore, name: str, path: Path, emitter: Emitter, folder: JobFolder) -> None:
    place = path.relative_to(folder.out / name).as_posix()
    try:
        blob = store.put_file(path, move=True)
    except StorageError as error:
        raise TypedError(
            "publish_failed",
            f"{place} could not be stored",
            hint="The blob store did not take it; retry.",
            retryable=True,
        ) from error
    emitter.send("artifact", format=name, path=place, size=blob.size, sha256=blob.sha256, media_type=_media_type(path))


def _media_type(path: Path) -> str:
    by_suffix = _MEDIA_TYPES.get(path.suffix.lower(), "application/octet-stream")
    return _MEDIA_TYPES_BY_NAME.get(path.name, by_suffix)


if __name__ == "__main__":
    run_child(upload)
