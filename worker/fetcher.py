"""Child that puts model and text into the job's folder: `python -m worker.fetcher JOB_FOLDER`.

It has the network, the storage and the hub token (in its environment, never in argv), and runs nothing it fetches.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from app.settings import Settings
from app.storage import BlobStore, StorageError, open_store
from nupes_core.modelfolder import check_file_name
from worker.childmain import run_child
from worker.emitter import Emitter
from worker.hub import HubModel
from worker.reasons import TypedError
from worker.workfolder import JobFolder

KINDS = frozenset({"", ".safetensors", ".json", ".txt", ".model", ".jinja", ".spm", ".tiktoken", ".md"})
"""Suffixes of files that belong to a model as data."""

Get = Callable[[dict[str, Any], Path], None]


def fetch(folder: JobFolder, emitter: Emitter) -> None:
    """Fetch what is not there yet; files of an earlier attempt are kept, they were checked when they were put there."""
    orders, settings = folder.read_orders(), Settings()
    store = open_store(settings)
    files = [file for file in orders["files"] if Path(file["path"]).suffix.lower() in KINDS]
    get = _hub_getter(orders["source"], settings, folder) if orders["source"]["type"] == "hub" else _blob_getter(store)
    emitter.phase("fetching")
    total, done = sum(file["size"] for file in files), 0
    for file in files:
        _place(file, folder.model, get)
        done += file["size"]
        emitter.progress("fetching", done, total, "bytes")
    if orders["text_sha256"]:
        _from_store(store, orders["text_sha256"], folder.text)
    shutil.rmtree(folder.scratch / "hub", ignore_errors=True)


def _place(file: dict[str, Any], model: Path, get: Get) -> None:
    """Put one file into the model folder under a temporary name, check it, rename it."""
    parts = file["path"].split("/")
    for part in parts:
        check_file_name(part)
    target = model.joinpath(*parts)
    if target.is_file():
        return
    target.parent.mkdir(exist_ok=True)
    incoming = model.parent / "incoming"
    incoming.unlink(missing_ok=True)
    get(file, incoming)
    if incoming.stat().st_size != file["size"]:
        raise _broken(file["path"], f"has {incoming.stat().st_size} bytes instead of {file['size']}")
    incoming.rename(target)


def _blob_getter(store: BlobStore) -> Get:
    return lambda file, path: _from_store(store, file["sha256"], path)


def _from_store(store: BlobStore, sha256: str, path: Path) -> None:
    try:
        store.fetch_to(sha256, path)
    except StorageError as error:
        raise TypedError(
            "download_failed", str(error), hint="The blob store did not deliver; retry.", retryable=True
        ) from error


def _hub_getter(source: dict[str, Any], settings: Settings, folder: JobFolder) -> Get:
    token = settings.hub_token.get_secret_value() if settings.hub_token else None
    hub = HubModel(source["repo_id"], source["commit"], token, folder.scratch / "hub")

    def get(file: dict[str, Any], path: Path) -> None:
        downloaded = hub.download(file["path"])
        if file["sha256"] and _sha256(downloaded) != file["sha256"]:
            raise _broken(file["path"], "does not have the checksum that the hub names")
        os.link(downloaded, path)

    return get


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _broken(name: str, problem: str) -> TypedError:
    return TypedError("download_failed", f"{name} {problem}", hint="Retry; the download was broken.", retryable=True)


if __name__ == "__main__":
    run_child(fetch)
