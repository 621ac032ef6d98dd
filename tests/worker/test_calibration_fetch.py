"""How calibration data gets into the folder of a job, and what is said when it can not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pydantic import SecretStr

from app.settings import Settings
from app.storage import open_store
from nupes_core.data.texts import kind_of
from tests.hubserver import Hub, hub_server
from worker import environment
from worker.child import Command
from worker.supervisor import supervise
from worker.workfolder import JobFolder, job_folder

COMMIT = "1234567890abcdef1234567890abcdef12345678"
TEXT = b"The lamplighter of the town walks on.\n" * 400
"""Large enough to be stored apart and redirected to."""

JSONL = b'{"text": "lamp"}\n'


@pytest.fixture
def settings(make_settings: Callable[..., Settings]) -> Settings:
    return make_settings(hub_token=SecretStr("hf_secret"))


@pytest.fixture
def folder(settings: Settings) -> JobFolder:
    return job_folder(settings.work_dir, "job_1", 1)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_server() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


def _fetch(settings: Settings, folder: JobFolder, calibration: dict[str, Any] | None) -> list[dict[str, Any]]:
    orders = {"source": {"type": "upload"}, "files": [], "text_sha256": None, "finished": []}
    folder.prepare({**orders, "calibration": calibration})
    env = environment.online(settings, folder)
    command = Command("worker.fetcher", [str(folder.path)], env, folder.path, folder.log)
    events: list[dict[str, Any]] = []
    supervise(command, events.append, lambda: None, 1.0)
    return events


def _dataset(**changes: Any) -> dict[str, Any]:
    return {"kind": "dataset", "repo_id": "org/d", "revision": "main", "file": None, "column": "text", **changes}


def _error(events: list[dict[str, Any]]) -> dict[str, Any]:
    errors = [event for event in events if event["type"] == "error"]
    assert len(errors) == 1, events
    return errors[0]


def test_an_upload_is_linked_into_the_folder(settings: Settings, folder: JobFolder) -> None:
    blob = open_store(settings).put_stream([TEXT])
    events = _fetch(settings, folder, {"kind": "upload", "sha256": blob.sha256, "column": "text"})
    assert [event["type"] for event in events] == ["phase"], folder.log.read_text()
    assert folder.calibration.read_bytes() == TEXT
    assert folder.calibration.stat().st_nlink == 2


def test_an_upload_that_is_gone_is_a_failed_download(settings: Settings, folder: JobFolder) -> None:
    error = _error(_fetch(settings, folder, {"kind": "upload", "sha256": "0" * 64, "column": "text"}))
    assert (error["code"], error["retryable"]) == ("download_failed", True)


@pytest.mark.parametrize("calibration", [None, {"kind": "sampled"}])
def test_without_data_nothing_is_fetched(
    settings: Settings, folder: JobFolder, calibration: dict[str, Any] | None
) -> None:
    assert [event["type"] for event in _fetch(settings, folder, calibration)] == ["phase"]
    assert not folder.calibration.exists()


def test_a_file_of_a_data_set_arrives_whole_and_the_commit_is_recorded(
    settings: Settings, folder: JobFolder, hub: Hub
) -> None:
    hub.add("datasets/org/d", {"README.md": b"# d", "data/train.txt": TEXT, "data/test.txt": TEXT}, token="hf_secret")
    events = _fetch(settings, folder, _dataset())
    assert folder.calibration.read_bytes() == TEXT, folder.log.read_text()
    assert events[-1]["message"] == f"calibrates on data/train.txt of the data set org/d at commit {COMMIT}"
    assert {path for _, path, _ in hub.requests if "resolve" in path} == {
        f"/datasets/org/d/resolve/{COMMIT}/data/train.txt"
    }
    assert {path.name for path in folder.shared.iterdir()} >= {"calibration", "model"}
    assert not (folder.path / "incoming").exists()
    assert not (folder.scratch / "hub").exists()


def test_another_attempt_keeps_the_data_it_has(settings: Settings, folder: JobFolder, hub: Hub) -> None:
    repository = hub.add("datasets/org/d", {"train.txt": TEXT})
    _fetch(settings, folder, _dataset())
    repository.files, repository.commit = {"train.txt": b"moved on"}, "f" * 40
    asked = len(hub.requests)
    assert [event["type"] for event in _fetch(settings, folder, _dataset())] == ["phase"]
    assert folder.calibration.read_bytes() == TEXT
    assert len(hub.requests) == asked


def test_a_file_is_known_by_its_content_once_its_name_is_gone(settings: Settings, folder: JobFolder, hub: Hub) -> None:
    hub.add("datasets/org/d", {"a.csv": b"id,sentence\n1,lamp\n2,light\n"})
    _fetch(settings, folder, _dataset(column="sentence"))
    assert kind_of(folder.calibration, "sentence") == "csv"


@pytest.mark.parametrize(
    ("names", "wished", "chosen"),
    [
        (["README.md", "only.parquet"], None, "only.parquet"),
        (["dataset_infos.json", "LICENSE.txt", ".hidden.json", "a.JSONL"], None, "a.JSONL"),
        (["data/Train.csv", "data/test.csv"], None, "data/Train.csv"),
        (["d/train-00000-of-00012.parquet", "d/train-00001-of-00012.parquet"], None, "d/train-00000-of-00012.parquet"),
        (["train.txt", "test.txt"], "test.txt", "test.txt"),
        (["images.safetensors", "train.txt"], "images.safetensors", "images.safetensors"),
    ],
)
def test_the_fitting_file_is_taken(
    settings: Settings, folder: JobFolder, hub: Hub, names: list[str], wished: str | None, chosen: str
) -> None:
    hub.add("datasets/org/d", {name: name.encode() for name in names})
    _fetch(settings, folder, _dataset(file=wished))
    assert folder.calibration.read_bytes() == chosen.encode(), folder.log.read_text()


@pytest.mark.parametrize(
    ("names", "wished", "said"),
    [
        (["a.txt", "b.txt"], None, "has 2 files to calibrate on; it has a.txt, b.txt"),
        ([f"train{index:02}.txt" for index in range(14)], None, "train09.txt and 4 more"),
        (["x/train.json", "y/train.json", "z.json"], None, "it has x/train.json, y/train.json"),
        (["README.md", "image.png"], None, "has no file that ends with .txt"),
        ([], None, "it has none"),
        (["a.txt"], "b.txt", "has no file 'b.txt'; it has a.txt"),
        (["a.txt"], "../a.txt", "has no file '../a.txt'"),
    ],
)
def test_where_no_single_file_fits_some_are_named(
    settings: Settings, folder: JobFolder, hub: Hub, names: list[str], wished: str | None, said: str
) -> None:
    hub.add("datasets/org/d", dict.fromkeys(names, JSONL))
    error = _error(_fetch(settings, folder, _dataset(file=wished)))
    assert (error["code"], error["retryable"]) == ("calibration_failed", False)
    assert said in error["message"]
    assert "calibration.dataset.file" in error["hint"]


@pytest.mark.parametrize(("repo_id", "revision"), [("org/gone", "main"), ("org/d", "v9"), ("org/../d", "main")])
def test_a_data_set_that_is_not_there_is_said(
    settings: Settings, folder: JobFolder, hub: Hub, repo_id: str, revision: str
) -> None:
    hub.add("datasets/org/d", {"a.txt": TEXT}, token="hf_secret")
    error = _error(_fetch(settings, folder, _dataset(repo_id=repo_id, revision=revision)))
    assert (error["code"], error["retryable"]) == ("calibration_failed", False)
    assert error["message"] == f"data set {repo_id} at {revision} not found"


def test_a_gated_data_set_is_said_to_be_gated(settings: Settings, folder: JobFolder, hub: Hub) -> None:
    hub.add("datasets/org/d", {"a.txt": TEXT}, gated=True)
    error = _error(_fetch(settings, folder, _dataset()))
    assert (error["code"], error["message"]) == ("calibration_failed", "the data set org/d is gated")
    assert "hf_secret" not in json.dumps(error)


def test_a_model_of_that_name_is_no_data_set(settings: Settings, folder: JobFolder, hub: Hub) -> None:
    hub.add("org/d", {"a.txt": TEXT})
    assert _error(_fetch(settings, folder, _dataset()))["code"] == "calibration_failed"


def test_a_hub_that_fails_is_worth_another_attempt(settings: Settings, folder: JobFolder, hub: Hub) -> None:
    hub.add("datasets/org/d", {"a.txt": TEXT})
    hub.status = 418  # the client itself repeats requests that end with 5xx
    error = _error(_fetch(settings, folder, _dataset()))
    assert (error["code"], error["retryable"]) == ("download_failed", True)


def test_a_file_that_is_too_large_is_not_fetched(make_settings: Callable[..., Settings], hub: Hub) -> None:
    settings = make_settings(max_upload_bytes=len(TEXT) - 1)
    folder = job_folder(settings.work_dir, "job_1", 1)
    hub.add("datasets/org/d", {"a.txt": TEXT})
    error = _error(_fetch(settings, folder, _dataset()))
    assert error["code"] == "calibration_failed"
    assert f"has {len(TEXT)} bytes; at most {len(TEXT) - 1} are fetched" in error["message"]
    assert not [path for _, path, _ in hub.requests if "resolve" in path]


def test_a_file_that_would_fill_the_disk_is_not_fetched(make_settings: Callable[..., Settings], hub: Hub) -> None:
    settings = make_settings(min_free_disk_bytes=1 << 60)
    folder = job_folder(settings.work_dir, "job_1", 1)
    hub.add("datasets/org/d", {"a.txt": TEXT})
    assert _error(_fetch(settings, folder, _dataset()))["code"] == "disk_full"
    assert not folder.calibration.exists()
