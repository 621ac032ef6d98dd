"""The SDK against the real service: files, models, jobs, waiting."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path

import pytest
from pydantic import ValidationError

from nupes_client.client import Client
from nupes_client.errors import (
    AuthenticationError,
    InvalidRequestError,
    LocalFileError,
    NotFoundError,
    ServiceUnreachableError,
    WaitTimeoutError,
)
from nupes_client.files import sha256_of
from nupes_client.schemas.jobs import Job, JobStatus
from nupes_client.schemas.models import Model
from nupes_client.schemas.specs import JobCreate, ModelRef
from nupes_client.schemas.uploads import UploadStatus
from tests.app.jobrows import make_layer
from tests.client import work
from tests.client.conftest import RunningService


@pytest.fixture
def model(client: Client, booklm: Path) -> Model:
    return client.models.from_folder(booklm)


def body(model: Model, **fields: object) -> JobCreate:
    return JobCreate.model_validate({"model": ModelRef(id=model.id), **fields})


def test_a_file_arrives_whole_with_its_checksum(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "big.bin"
    path.write_bytes(bytes(range(256)) * 20_000)
    counted: list[int] = []
    upload = client.uploads.send(path, advance=counted.append)
    assert upload.status is UploadStatus.COMPLETE
    assert upload.sha256 == sha256_of(path)
    assert sum(counted) == path.stat().st_size


def test_an_empty_file_is_a_file(client: Client, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert client.uploads.send(tmp_path / "empty").status is UploadStatus.COMPLETE


def test_bytes_the_service_has_are_not_sent_again(client: Client, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("the same words")
    (tmp_path / "b.txt").write_text("the same words")
    first = client.uploads.send(tmp_path / "a.txt")
    assert client.uploads.create("b.txt", first.size, first.sha256).status is UploadStatus.COMPLETE
    assert client.uploads.send(tmp_path / "b.txt").id == first.id


def test_bytes_another_tenant_sent_are_not_given_away(client: Client, service: RunningService, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("private words")
    sent = client.uploads.send(tmp_path / "a.txt")
    with Client(service.url, service.new_key()) as stranger:
        assert stranger.uploads.create("a.txt", sent.size, sent.sha256).status is UploadStatus.PENDING
        with pytest.raises(NotFoundError):
            stranger.uploads.get(sent.id)


def test_a_file_that_changed_under_way_is_refused_and_not_kept(client: Client, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("before")
    announced = sha256_of(tmp_path / "a")
    (tmp_path / "a").write_text("after!")
    with pytest.raises(InvalidRequestError) as caught:
        client.uploads.send(tmp_path / "a", sha256=announced)
    assert caught.value.code == "checksum_mismatch"


def test_a_missing_file_is_named(client: Client, tmp_path: Path) -> None:
    with pytest.raises(LocalFileError, match="nothing-here"):
        client.uploads.send(tmp_path / "nothing-here")


def test_a_wrong_key_is_refused(service: RunningService) -> None:
    with Client(service.url, "nupes_wrong") as stranger, pytest.raises(AuthenticationError):
        list(stranger.models.list())


def test_a_folder_becomes_a_model_and_is_found_again_when_sent_twice(client: Client, booklm: Path) -> None:
    first = client.models.from_folder(booklm)
    again = client.models.from_folder(booklm)
    assert first.id == again.id
    assert first.params > 5_000_000
    assert {file.path for file in first.files} >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert [item.id for item in client.models.list()] == [first.id]


def test_a_folder_may_be_named_by_a_string(client: Client, booklm: Path) -> None:
    assert client.models.from_folder(str(booklm)).id == client.models.from_folder(booklm).id


def test_a_file_may_be_named_by_a_string(client: Client, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("words")
    assert client.uploads.send(str(tmp_path / "a.txt")).size == len("words")


@pytest.mark.parametrize(("name", "words"), [("pytorch_model.bin", "pickle"), ("notes.txt", "no .safetensors")])
def test_a_folder_without_safe_weights_is_refused_before_anything_is_sent(
    client: Client, tmp_path: Path, name: str, words: str
) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_text("x")
    with pytest.raises(LocalFileError, match=words):
        client.models.from_folder(tmp_path)


def test_code_in_a_folder_stays_at_home(client: Client, booklm: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(booklm, folder)
    (folder / "modeling_evil.py").write_text("raise SystemExit")
    (folder / ".git").mkdir()
    assert "modeling_evil.py" not in {file.path for file in client.models.from_folder(folder).files}


def test_the_same_wish_is_the_same_job(client: Client, model: Model) -> None:
    first = client.jobs.create(body(model))
    assert client.jobs.create(body(model)).id == first.id
    assert client.jobs.create(body(model, weights={"bits": 3})).id != first.id


def test_a_mapping_is_the_wish_it_describes(client: Client, model: Model) -> None:
    made = client.jobs.create({"model": {"id": model.id}, "weights": {"bits": 3}})
    assert made.id == client.jobs.create(body(model, weights={"bits": 3})).id
    with pytest.raises(ValidationError, match="bots"):
        client.jobs.create({"model": {"id": model.id}, "weights": {"bots": 3}})


def test_a_job_that_failed_does_not_stand_in_the_way_of_another_try(
    client: Client, model: Model, service: RunningService
) -> None:
    first = client.jobs.create(body(model))
    work.fail(service.database, first.id)
    second = client.jobs.create(body(model))
    assert second.id != first.id
    client.jobs.cancel(second.id)
    third = client.jobs.create(body(model))
    assert third.id not in {first.id, second.id}
    assert client.jobs.create(body(model)).id == third.id


def test_pages_are_walked_through(client: Client, model: Model) -> None:
    made = [client.jobs.create(body(model, seed=seed)).id for seed in range(5)]
    assert [job.id for job in client.jobs.list()] == made[::-1]
    assert [job.id for job in client.jobs.list(limit=2)] == made[:2:-1]
    assert list(client.jobs.list(status=JobStatus.FAILED)) == []


def test_waiting_sees_each_state_and_returns_the_end(client: Client, model: Model, service: RunningService) -> None:
    job = client.jobs.create(body(model))
    seen: list[Job] = []

    def run() -> None:
        time.sleep(0.5)
        fence = work.start(service.database, job.id)
        time.sleep(0.8)
        work.report(service.database, job.id, fence, 0.5)
        time.sleep(0.8)
        work.end(service.database, job.id, JobStatus.SUCCEEDED, fence, result=work.RESULT.model_dump())

    worker = threading.Thread(target=run)
    worker.start()
    ended = client.jobs.wait(job.id, timeout_s=20, on_update=seen.append)
    worker.join()
    assert ended.status is JobStatus.SUCCEEDED
    assert [item.status.value for item in seen][:1] == ["queued"]
    assert 0.5 in [item.progress.fraction for item in seen]
    assert seen[-1].is_terminal


def test_https_to_a_service_without_tls_says_which_address_to_try(service: RunningService, key: str) -> None:
    secure = service.url.replace("http://", "https://")
    with Client(secure, key, attempts=1) as client, pytest.raises(ServiceUnreachableError) as caught:
        client.readiness()
    assert f"is it {service.url}?" in str(caught.value.hint)


def test_waiting_too_long_leaves_the_job_alone(client: Client, model: Model) -> None:
    job = client.jobs.create(body(model))
    began = time.monotonic()
    with pytest.raises(WaitTimeoutError, match="keeps running"):
        client.jobs.wait(job.id, timeout_s=1)
    assert time.monotonic() - began < 4
    assert client.jobs.get(job.id).status is JobStatus.QUEUED


def test_waiting_works_where_streams_do_not(
    client: Client, model: Model, service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = client.jobs.create(body(model))
    stream = client.jobs.stream(job.id)
    monkeypatch.setattr(stream, "_path", "/no-such-page")
    monkeypatch.setattr(client.jobs, "stream", lambda _job_id: stream)
    ender = threading.Timer(1.0, work.succeed, (service.database, job.id))
    ender.start()
    assert client.jobs.wait(job.id, timeout_s=20).status is JobStatus.SUCCEEDED
    ender.join()


def test_the_events_of_an_ended_job_end(client: Client, model: Model, service: RunningService) -> None:
    job = client.jobs.create(body(model))
    work.succeed(service.database, job.id)
    events = list(client.jobs.events(job.id))
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert list(client.jobs.events(job.id, after=events[-1].seq)) == []
    assert [event.seq for event in client.jobs.past_events(job.id, after=1)] == [event.seq for event in events[1:]]


def test_a_poll_with_the_etag_says_nothing_new(client: Client, model: Model) -> None:
    job = client.jobs.create(body(model))
    snapshot = client.jobs.poll(job.id)
    assert snapshot is not None
    assert client.jobs.poll(job.id, etag=snapshot.etag) is None


def test_keys_are_made_used_and_revoked(client: Client, service: RunningService) -> None:
    made = client.keys.create("ci", ["jobs:read"])
    with Client(service.url, made.secret) as ci:
        assert list(ci.jobs.list()) == []
        client.keys.revoke(made.id)
        with pytest.raises(AuthenticationError):
            list(ci.jobs.list())
    assert [key.name for key in client.keys.list() if key.revoked_at] == ["ci"]


def test_curves_come_thinned_out_on_demand(client: Client, model: Model, service: RunningService) -> None:
    job = client.jobs.create(body(model))
    assert client.jobs.metrics(job.id) == []
    fence = work.start(service.database, job.id)
    for name in ("loss/a", "loss/b"):
        work.measure(service.database, job.id, fence, name, [1 / (1 + step) for step in range(100)])
    (found,) = client.jobs.metrics(job.id, series=["loss/b"], max_points=10)
    assert (found.name, found.count) == ("loss/b", 100)
    assert len(found.points) <= 10
    assert (found.points[0].value, found.points[-1].value) == (1.0, 0.01)


def test_layers_tell_their_histogram_on_demand(client: Client, model: Model, service: RunningService) -> None:
    job = client.jobs.create(body(model))
    layers = [make_layer(name, histogram=[5, index]) for index, name in enumerate("ab")]
    work.succeed(service.database, job.id, layers=layers)
    assert [layer.histogram for layer in client.jobs.layers(job.id)] == [None, None]
    assert [layer.histogram for layer in client.jobs.layers(job.id, names=["b"], histograms=True)] == [[5, 1]]
