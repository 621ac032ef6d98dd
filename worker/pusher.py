"""Child that takes a result to the hub: `python -m worker.pusher JOB_FOLDER`, told the user's token by a line of input.

It has network and storage, and runs nothing it moves.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from app.settings import Settings
from app.storage import StorageError, open_store
from nupes_core.card import CARD_NAME, SUMS_NAME, architectures_of, hub_card
from nupes_core.manifest import read_manifest
from worker.childmain import run_child
from worker.emitter import Emitter
from worker.hubrepo import HubRepo, MovedOnError, Target, operation
from worker.reasons import TypedError
from worker.workfolder import JobFolder

ROUNDS = 3
"""How often the branch is looked at anew when others write to it."""


def push(folder: JobFolder, emitter: Emitter) -> None:
    """Lay the files out, send what the hub does not have, commit, and say where it is."""
    orders, token = folder.read_orders(), sys.stdin.readline().strip()
    files = _laid_out(folder, orders)
    repo = HubRepo(Target(orders["repo"], orders["revision"], orders["private"]), token)
    commit, commit_url = _pushed(repo, files, folder, orders, emitter)
    emitter.send(
        "pushed",
        repo=orders["repo"],
        revision=orders["revision"],
        url=repo.url,
        commit=commit,
        commit_url=commit_url,
        formats=orders["formats"],
        files=len(files),
    )


def _laid_out(folder: JobFolder, orders: Mapping[str, Any]) -> dict[str, Path]:
    """Return what the repository is to hold, by path: first format at the root, others in folders, one card for all."""
    shutil.rmtree(folder.pushed, ignore_errors=True)
    store, first = open_store(Settings()), orders["formats"][0]
    files: dict[str, Path] = {}
    sums: dict[str, str] = {}
    for each in orders["files"]:
        path = each["path"] if each["format"] == first else f"{each['format']}/{each['path']}"
        files[path], sums[path] = folder.pushed / path, each["sha256"]
        try:
            store.fetch_to(each["sha256"], files[path])
        except StorageError as error:
            raise TypedError(
                "push_failed", f"{path} could not be read", hint="The blob store did not deliver.", retryable=True
            ) from error
    manifests = {
        name: read_manifest(folder.pushed if name == first else folder.pushed / name) for name in orders["formats"]
    }
    card = hub_card(manifests, architectures_of(folder.pushed), orders["repo"], orders["revision"])
    _replace(folder, files, sums, CARD_NAME, card)
    _replace(folder, files, sums, SUMS_NAME, _sums(sums))
    return dict(sorted(files.items()))


def _replace(folder: JobFolder, files: dict[str, Path], sums: dict[str, str], path: str, text: str) -> None:
    """Put a file of the repository in the place of the artifact's own, which is a link into the store."""
    place = folder.pushed / path
    place.unlink(missing_ok=True)
    place.write_text(text, encoding="utf-8")
    files[path], sums[path] = place, hashlib.sha256(text.encode()).hexdigest()


def _sums(sums: Mapping[str, str]) -> str:
    return "".join(f"{sums[path]}  {path}\n" for path in sorted(sums) if path != SUMS_NAME)


def _pushed(
    repo: HubRepo, files: Mapping[str, Path], folder: JobFolder, orders: Mapping[str, Any], emitter: Emitter
) -> tuple[str, str]:
    """Return commit and page; look again and try again when others committed in between."""
    for round_ in range(1, ROUNDS + 1):
        head = repo.open()
        stale = repo.earlier(head, folder.scratch / "hub") - files.keys()
        additions = [operation(path, place) for path, place in files.items()]
        total, done = sum(place.stat().st_size for place in files.values()), 0
        for addition, place in zip(additions, files.values(), strict=True):
            repo.send(addition)
            done += place.stat().st_size
            emitter.progress("pushing", done, total, "bytes")
        try:
            return repo.commit(head, additions, stale, _message(orders["formats"], orders["job_id"]))
        except MovedOnError:
            if round_ == ROUNDS:
                raise
    raise AssertionError("ROUNDS is at least 1")


def _message(formats: Sequence[str], job_id: str) -> str:
    return f"Quantized with NUPES: {', '.join(formats)} ({job_id})"


if __name__ == "__main__":
    run_child(push)
