"""Child that puts model, text and calibration data into the job's folder: `python -m worker.fetcher JOB_FOLDER`.

It has the network, the storage and the hub token (in its environment, never in argv), and runs nothing it fetches.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.settings import Settings
from app.storage import BlobStore, StorageError, open_store
from nupes_core.modelfolder import check_file_name
from worker.childmain import run_child
from worker.datasets import choose_file
from worker.emitter import Emitter
from worker.hub import DATASET, MODEL, HubFile, HubFiles, RepositoryKind, resolve_dataset
from worker.reasons import TypedError
from worker.workfolder import JobFolder

KINDS = frozenset({"", ".safetensors", ".json", ".txt", ".model", ".jinja", ".spm", ".tiktoken", ".md"})
"""Suffixes of files that belong to a model as data."""

Get = Callable[[HubFile, Path], None]


@dataclass(frozen=True)
class _Fetch:
    """What every step needs."""

    folder: JobFolder
    settings: Settings
    store: BlobStore
    emitter: Emitter


def fetch(folder: JobFolder, emitter: Emitter) -> None:
    """Fetch what is not there yet; files of an earlier attempt are kept, they were checked when they were put there."""
    orders, settings = folder.read_orders(), Settings()
    job = _Fetch(folder, settings, open_store(settings), emitter)
    emitter.phase("fetching")
    _fetch_model(job, orders)
    if orders["text_sha256"]:
        _arrive(folder, folder.text, lambda path: _from_store(job.store, orders["text_sha256"], path))
    _fetch_finished(job, orders)
    if calibration := orders.get("calibration"):
        _CALIBRATION[calibration["kind"]](job, calibration)
    shutil.rmtree(folder.scratch / "hub", ignore_errors=True)


def _fetch_model(job: _Fetch, orders: Mapping[str, Any]) -> None:
    files = [HubFile(**file) for file in orders["files"] if Path(file["path"]).suffix.lower() in KINDS]
    source = orders["source"]
    get = _hub_getter(job, MODEL, source) if source["type"] == "hub" else _blob_getter(job.store)
    total, done = sum(file.size for file in files), 0
    for file in files:
        _put(job, file, _inside(job.folder.model, file.path), get)
        done += file.size
        job.emitter.progress("fetching", done, total, "bytes")


def _fetch_finished(job: _Fetch, orders: Mapping[str, Any]) -> None:
    for each in orders["finished"]:
        file = HubFile(path=each["path"], size=each["size"], sha256=each["sha256"])
        target = job.folder.finished / str(each["position"])
        _put(job, file, _inside(target, file.path), _blob_getter(job.store))


def _inside(folder: Path, path: str) -> Path:
    parts = path.split("/")
    for part in parts:
        check_file_name(part)
    return folder.joinpath(*parts)


def _put(job: _Fetch, file: HubFile, target: Path, get: Get) -> None:
    """Fetch one file and check it."""

    def checked(path: Path) -> None:
        get(file, path)
        if path.stat().st_size != file.size:
            raise _broken(file.path, f"has {path.stat().st_size} bytes instead of {file.size}")

    _arrive(job.folder, target, checked)


def _arrive(folder: JobFolder, target: Path, get: Callable[[Path], None]) -> None:
    """Have a file that is not there yet put aside, then rename it: others may be reading what has that name."""
    if target.is_file():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    folder.incoming.unlink(missing_ok=True)
    get(folder.incoming)
    folder.incoming.rename(target)


def _blob_getter(store: BlobStore) -> Get:
    return lambda file, path: _from_store(store, str(file.sha256), path)


def _from_store(store: BlobStore, sha256: str, path: Path) -> None:
    try:
        store.fetch_to(sha256, path)
    except StorageError as error:
        raise TypedError(
            "download_failed", str(error), hint="The blob store did not deliver; retry.", retryable=True
        ) from error


def _hub_getter(job: _Fetch, kind: RepositoryKind, source: Mapping[str, Any]) -> Get:
    hub = HubFiles(kind, source["repo_id"], source["commit"], _token(job.settings), job.folder.scratch / "hub")

    def get(file: HubFile, path: Path) -> None:
        downloaded = hub.download(file.path)
        if file.sha256 and _sha256(downloaded) != file.sha256:
            raise _broken(file.path, "does not have the checksum that the hub names")
        os.link(downloaded, path)

    return get


def _token(settings: Settings) -> str | None:
    return settings.hub_token.get_secret_value() if settings.hub_token else None


def _calibration_dataset(job: _Fetch, orders: Mapping[str, Any]) -> None:
    """Fetch one file of a data set; that of an earlier attempt stays, though the revision may have moved on."""
    if job.folder.calibration.is_file():
        return
    repo_id = orders["repo_id"]
    commit, files = resolve_dataset(repo_id, orders["revision"], _token(job.settings))
    file = files[choose_file(repo_id, files, orders["file"])]
    _check_size(job, file, repo_id)
    _put(job, file, job.folder.calibration, _hub_getter(job, DATASET, {"repo_id": repo_id, "commit": commit}))
    job.emitter.log(f"calibrates on {file.path} of the data set {repo_id} at commit {commit}")


def _check_size(job: _Fetch, file: HubFile, repo_id: str) -> None:
    """A file of a data set is bounded as an upload is, and leaves the disk as much room."""
    what, most = f"{file.path} of the data set {repo_id} has {file.size} bytes", job.settings.max_upload_bytes
    if file.size > most:
        hint = "Name a smaller file as calibration.dataset.file."
        raise TypedError("calibration_failed", f"{what}; at most {most} are fetched", hint=hint)
    free = shutil.disk_usage(job.folder.path).free
    if file.size + job.settings.min_free_disk_bytes > free:
        hint = "Free some space on the worker's disk, or name a smaller file."
        raise TypedError("disk_full", f"{what}; the worker's disk has {free} left", hint=hint)


_CALIBRATION: Mapping[str, Callable[[_Fetch, Mapping[str, Any]], None]] = {
    "upload": lambda job, orders: _arrive(
        job.folder, job.folder.calibration, lambda path: _from_store(job.store, orders["sha256"], path)
    ),
    "dataset": _calibration_dataset,
    "sampled": lambda *_: None,
}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _broken(name: str, problem: str) -> TypedError:
    return TypedError("download_failed", f"{name} {problem}", hint="Retry; the download was broken.", retryable=True)


if __name__ == "__main__":
    run_child(fetch)
