"""Two attempts at one job on one machine: a worker that was stopped past its lease wakes up beside its successor."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.settings import Settings
from app.storage import open_store
from tests.worker.factory import attempt_orders, wait_for, write_tiny_llama
from worker.child import Child
from worker.commands import computing, moving
from worker.supervisor import supervise
from worker.workfolder import JobFolder, job_folder, shard_folder

PATIENCE_S = 120.0


@pytest.fixture
def settings(make_settings: Callable[..., Settings]) -> Settings:
    return make_settings()


def _stopped_at_work(settings: Settings, folder: JobFolder) -> Child:
    """A runner that was stopped after it had committed its first piece."""
    child = Child(computing(settings, "worker.runner", folder))

    def has_begun() -> bool:
        events = list(child.events(0.0))
        assert not [event for event in events if event["type"] == "error"], folder.log.read_text()
        return any(folder.pieces.rglob("*.safetensors"))

    wait_for(has_begun, PATIENCE_S, "the first piece")
    os.killpg(child.pid, signal.SIGSTOP)
    return child


def _has_ended(child: Child) -> bool:
    list(child.events(0.0))
    return child.poll() is not None


def _run(settings: Settings, folder: JobFolder, module: str) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    supervise(computing(settings, module, folder), events.append, lambda: None, 1.0)
    return events


def _content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_runner_that_wakes_up_late_changes_nothing_of_the_next_attempt(settings: Settings) -> None:
    first, second = (job_folder(settings.work_dir, "job_1", attempt) for attempt in (1, 2))
    first.prepare(attempt_orders())
    first.model.rmdir()
    write_tiny_llama(first.model, layers=4, hidden=128)
    late = _stopped_at_work(settings, first)
    try:
        committed = {path.name for path in first.pieces.rglob("[0-9a-f]*.safetensors")}
        second.prepare(attempt_orders())
        assert "error" not in {event["type"] for event in _run(settings, second, "worker.runner")}
        written = _content(second.path)
        assert committed <= {path.name for path in second.pieces.rglob("*.safetensors")}
        os.killpg(late.pid, signal.SIGCONT)
        wait_for(lambda: _has_ended(late), PATIENCE_S, "end of the first attempt")
    finally:
        late.close()
    assert _content(second.path) == written
    assert [event["type"] for event in _run(settings, second, "worker.runner_check")] == ["log"]


def test_what_an_attempt_fetched_is_there_for_the_next_and_is_not_fetched_again(settings: Settings) -> None:
    store = open_store(settings)
    blob = store.put_stream([b"It was the best of times."])
    wish = {"text_sha256": blob.sha256, "calibration": {"kind": "upload", "sha256": blob.sha256, "column": "text"}}
    for attempt in (1, 2):
        folder = job_folder(settings.work_dir, "job_1", attempt)
        folder.prepare(attempt_orders(**wish))
        events: list[dict[str, Any]] = []
        supervise(moving(settings, "worker.fetcher", folder), events.append, lambda: None, 1.0)
        assert "error" not in {event["type"] for event in events}, folder.log.read_text()
        assert folder.text.read_bytes() == folder.calibration.read_bytes() == b"It was the best of times."
        store.doom(blob.sha256)
        store.purge(blob.sha256)


def test_an_attempt_frees_the_room_of_earlier_ones_and_of_no_later_one(settings: Settings) -> None:
    folders = [job_folder(settings.work_dir, "job_1", attempt) for attempt in (1, 2, 10)]
    for folder in (folders[0], folders[2], folders[1]):  # the second begins last: it was stopped before it began
        folder.prepare({})
    assert [folder.path.exists() for folder in folders] == [False, True, True]
    assert {folder.model for folder in folders} == {folders[0].shared / "model"}


def test_attempts_at_a_file_are_in_order_whichever_attempt_at_the_job_they_belong_to(settings: Settings) -> None:
    folders = [shard_folder(settings.work_dir, "job_1", 7, *numbers) for numbers in ((1, 1), (1, 2), (2, 1))]
    for folder in folders:
        folder.prepare({})
    assert [folder.path.exists() for folder in folders] == [False, False, True]
