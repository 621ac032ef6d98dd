"""Jobs over HTTP: making, reading, listing, waiting, changing, cancelling, deleting, retrying."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select

from app.core.canonical import content_hash
from app.db.session import Database
from app.db.tables import Artifact, IdempotencyKey, Job, JobEvent, JobLayer, ModelFile, OutboxMessage, Upload
from app.jobs import outcomes, repository, submission
from app.jobs.transitions import record
from app.plans.texts import HEAD_BYTES
from app.plans.translate import quantization_config
from app.settings import Settings
from app.uploads import service as uploads
from nupes_client.schemas.jobs import JobError
from nupes_client.schemas.problems import JobErrorCode
from nupes_client.schemas.specs import JobCreate, JobSpec
from nupes_core.header import TensorSpec
from tests.app.api import Api, open_api
from tests.app.jobrows import claim, make_file, make_layer, make_result, read_job
from tests.servers import free_port


def succeed(database: Database, job_id: str) -> None:
    fence = claim(database, job_id)
    with database.write() as session:
        learnt = make_layer("a", codes_moved=0.25, activation_bits=8)
        layers = [learnt, make_layer("b", bits=None, skipped_reason="excluded")]
        outcomes.succeed(session, session.get_one(Job, job_id), fence, make_result(), layers, [make_file()])


def fail(database: Database, job_id: str) -> None:
    fence = claim(database, job_id)
    error = JobError(code=JobErrorCode.OOM_HOST, message="too big", retryable=True)
    with database.write() as session:
        outcomes.fail(session, session.get_one(Job, job_id), fence, error)


def soon(seconds: float, act: Callable[[], object]) -> threading.Timer:
    timer = threading.Timer(seconds, act)
    timer.start()
    return timer


# Making jobs


def test_a_job_is_accepted_and_can_be_read_where_location_says(api: Api) -> None:
    response = api.post("/v1/jobs", json=api.body(name="nightly", labels={"pipeline": "ci"}, priority=3))
    assert response.status_code == 202, response.text
    job = response.json()
    assert int(response.headers["Retry-After"]) > 0
    found = api.get(response.headers["Location"])
    assert found.json() == job
    assert found.headers["ETag"] == f'"{job["version"]}"' == response.headers["ETag"]
    assert (job["status"], job["is_terminal"], job["name"], job["labels"], job["priority"]) == (
        "queued",
        False,
        "nightly",
        {"pipeline": "ci"},
        3,
    )
    assert api.get(job["links"]["events"]).json()["data"][0]["data"] == {"from": None, "to": "queued"}


def test_the_config_of_a_job_is_complete_and_makes_the_same_job_again(api: Api) -> None:
    job = api.post("/v1/jobs", json=api.body(weights={"bits": 3})).json()
    assert job["config"]["weights"] == {
        "bits": 3,
        "group_size": 64,
        "exponent": {"mode": "search", "scope": "layer", "value": None},
        "layout": "auto",
        "scale_bits": 8,
    }
    again = api.post("/v1/jobs", json=job["config"]).json()
    assert again["config"] == job["config"]
    first, second = read_job(api.database, job["id"]), read_job(api.database, again["id"])
    assert first.config_hash == second.config_hash == content_hash(job["config"])


def test_the_wake_up_leaves_the_outbox_once_the_broker_has_it(api: Api) -> None:
    job_id = api.post("/v1/jobs", json=api.body()).json()["id"]
    with api.database.read() as session:
        assert session.scalars(select(OutboxMessage)).all() == []
    assert job_id in "".join(path.read_text() for path in _queue_files(api))


def _queue_files(api: Api) -> list[Any]:
    return [path for path in api.app.state.settings.queue_dir.rglob("*") if path.is_file()]


def test_a_broker_that_is_down_costs_no_job_and_little_time(
    make_settings: Callable[..., Settings], sqlite_url: str
) -> None:
    with open_api(make_settings(database_url=sqlite_url, broker_url=f"redis://127.0.0.1:{free_port()}/0")) as api:
        body = api.body()
        api.post("/v1/jobs", json=body)  # the first one also pays for importing the broker's client
        began = time.monotonic()
        assert api.post("/v1/jobs", json=body).status_code == 202
        assert time.monotonic() - began < 2
        with api.database.read() as session:
            assert len(session.scalars(select(OutboxMessage)).all()) == 2


def test_a_broker_that_does_not_answer_costs_no_job_and_little_time(
    make_settings: Callable[..., Settings], sqlite_url: str
) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        broker_url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        with open_api(make_settings(database_url=sqlite_url, broker_url=broker_url)) as api:
            began = time.monotonic()
            assert api.post("/v1/jobs", json=api.body()).status_code == 202
            assert time.monotonic() - began < 8


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "1 bit": ({"weights": {"bits": 1}}, "/weights/bits", "greater_than_equal"),
    "9 bits": ({"weights": {"bits": 9}}, "/weights/bits", "less_than_equal"),
    "group size 0": ({"weights": {"group_size": 0}}, "/weights/group_size", "value_error"),
    "group size 0 of a layer": (
        {"layers": {"overrides": [{"match": "x", "group_size": 0}]}},
        "/layers/overrides/0/group_size",
        "value_error",
    ),
    "no room for the exponent choice": (
        {"weights": {"exponent": {"scope": "group"}, "scale_bits": 5}},
        "/weights",
        "value_error",
    ),
    "group size -2": ({"weights": {"group_size": -2}}, "/weights/group_size", "greater_than_equal"),
    "unknown field": ({"wieghts": {}}, "/wieghts", "extra_forbidden"),
    "unknown format": ({"formats": ["tar"]}, "/formats/0", "literal_error"),
    "bits that a format does not hold": (
        {"weights": {"bits": 5}, "formats": ["nupes", "compressed-tensors"]},
        "/formats",
        "value_error",
    ),
    "activations in a format of weights": ({"activations": {}, "formats": ["onnx"]}, "/formats", "value_error"),
    "no regular expression": ({"layers": {"exclude": ["("]}}, "/layers/exclude", "value_error"),
    "perplexity without text": ({"evaluation": {"metrics": ["perplexity"]}}, "/evaluation", "value_error"),
    "gate without its metric": ({"gates": {"max_kl": 0.1}}, "", "value_error"),
    "data for a job that needs none": ({"calibration": {}}, "/calibration", "value_error"),
    "data for activations that need none": (
        {"activations": {"smooth": False}, "calibration": {}},
        "/calibration",
        "value_error",
    ),
    "fixed scales without data": ({"activations": {"scaling": "static"}}, "", "value_error"),
    "stages of a data-free job": ({"optimize": {"steps": 10}}, "/optimize", "value_error"),
    "range of dynamic scales": ({"activations": {"range": "percentile"}}, "/activations", "value_error"),
    "two sources of data": (
        {
            "optimize": {"mode": "data_driven"},
            "calibration": {"text": {"upload_id": "upl_x"}, "dataset": {"repo_id": "org/d"}},
        },
        "/calibration",
        "value_error",
    ),
    "column of no text": (
        {"optimize": {"mode": "data_driven"}, "calibration": {"column": "body"}},
        "/calibration",
        "value_error",
    ),
    "label with a space": ({"labels": {"a b": "c"}}, "/labels/a b", "string_pattern_mismatch"),
    "eternal": ({"timeout_s": 10**9}, "/timeout_s", "less_than_equal"),
}


@pytest.mark.parametrize(("fields", "pointer", "code"), REFUSED.values(), ids=REFUSED)
def test_a_bad_wish_is_refused_with_the_place_and_the_reason(
    lite: Api, fields: dict[str, Any], pointer: str, code: str
) -> None:
    for path in ("/v1/jobs", "/v1/plans"):
        response = lite.post(path, json=lite.body(**fields))
        assert response.status_code == 422
        problem = response.json()
        assert response.headers["Content-Type"] == "application/problem+json"
        assert [(error["pointer"], error["code"]) for error in problem["errors"]] == [(pointer, code)]
    assert lite.get("/v1/jobs").json()["data"] == []


def test_a_nul_character_is_stored_or_refused_and_breaks_nothing(api: Api) -> None:
    response = api.post("/v1/jobs", json=api.body(name="a\0b"))
    assert response.status_code in (202, 422)
    assert len(api.get("/v1/jobs").json()["data"]) == (response.status_code == 202)


def test_a_model_without_quantizable_layers_is_refused(lite: Api) -> None:
    model_id = lite.add_model([TensorSpec("model.norm.weight", "BF16", (64,))])
    response = lite.post("/v1/jobs", json=lite.body(model_id))
    assert (response.status_code, response.json()["code"]) == (422, "no_quantizable_layers")


def test_layers_that_are_all_excluded_are_no_quantizable_layers(lite: Api) -> None:
    response = lite.post("/v1/jobs", json=lite.body(layers={"exclude": ["."]}))
    assert (response.status_code, response.json()["code"]) == (422, "no_quantizable_layers")
    assert "layers.exclude" in response.json()["hint"]


def test_an_unknown_architecture_is_refused_only_when_it_must_be_built(lite: Api) -> None:
    config = {"model_type": "homegrown"}
    model_id = lite.add_model(model_type="homegrown", config=config)
    refused = lite.post("/v1/jobs", json={"model": {"id": model_id}})
    assert (refused.status_code, refused.json()["code"]) == (422, "unsupported_architecture")
    assert '"evaluation": null' in refused.json()["hint"]
    assert lite.post("/v1/jobs", json=lite.body(model_id)).status_code == 202


def test_a_model_that_is_quantized_already_is_refused(lite: Api) -> None:
    model_id = lite.add_model(config={"model_type": "llama", "quantization_config": {"quant_method": "gptq"}})
    response = lite.post("/v1/jobs", json=lite.body(model_id))
    assert (response.status_code, response.json()["code"]) == (422, "invalid_config")


def add_text(api: Api, content: bytes) -> str:
    blob = api.app.state.store.put_stream([content])
    upload = Upload(tenant_id=api.tenant_id, filename="text.txt", size=blob.size, sha256=blob.sha256)
    with api.database.write() as session:
        session.add(upload)
    return upload.id


def refusal(response: Any) -> tuple[str, str]:
    assert response.status_code == 422, response.text
    (error,) = response.json()["errors"]
    return error["code"], error["pointer"]


def evaluated_on(upload_id: str) -> dict[str, Any]:
    return {"metrics": ["perplexity"], "text": {"upload_id": upload_id}}


def add_upload(api: Api, sha256: str | None) -> str:
    upload = Upload(tenant_id=api.tenant_id, filename="text.txt", size=3, sha256=sha256)
    with api.database.write() as session:
        session.add(upload)
    return upload.id


def calibrated_on(upload_id: str) -> dict[str, Any]:
    return {"optimize": {"mode": "data_driven"}, "calibration": {"text": {"upload_id": upload_id}}}


PURPOSES = {
    "evaluation": lambda upload_id: {"evaluation": evaluated_on(upload_id)},
    "calibration": calibrated_on,
}
"""What a text may be named for; each makes the fields of a wish from the id of an upload."""


@pytest.mark.parametrize("purpose", PURPOSES)
def test_a_text_must_be_there_and_complete(lite: Api, purpose: str) -> None:
    pending, complete = add_upload(lite, None), add_text(lite, b"some words")
    foreign = add_upload(lite.another_tenant(), "b" * 64)
    for path, accepted in (("/v1/plans", 200), ("/v1/jobs", 202)):
        answers = {
            upload_id: lite.post(path, json=lite.body(**PURPOSES[purpose](upload_id)))
            for upload_id in (pending, complete, foreign, "upl_none")
        }
        statuses = {upload_id: answer.status_code for upload_id, answer in answers.items()}
        assert statuses == {pending: 422, complete: accepted, foreign: 404, "upl_none": 404}
        assert refusal(answers[pending]) == ("upload_pending", f"/{purpose}/text/upload_id")


@pytest.mark.parametrize("purpose", PURPOSES)
@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "text_empty"),
        (b" \n\n\t", "text_empty"),
        ("naïve".encode("latin-1"), "text_not_utf8"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100_000), "text_not_utf8"),
        ("cut short é".encode()[:-1], "text_not_utf8"),
    ],
)
def test_a_file_that_is_no_text_is_refused_before_any_work(lite: Api, purpose: str, content: bytes, code: str) -> None:
    upload_id = add_text(lite, content)
    for path in ("/v1/plans", "/v1/jobs"):
        response = lite.post(path, json=lite.body(**PURPOSES[purpose](upload_id)))
        assert refusal(response) == (code, f"/{purpose}/text/upload_id")
        assert upload_id in response.json()["detail"]


@pytest.mark.parametrize("purpose", PURPOSES)
def test_a_text_for_a_model_that_cannot_read_is_refused_before_any_work(lite: Api, purpose: str) -> None:
    model_id = lite.add_model()
    wish = lite.body(model_id, **PURPOSES[purpose](add_text(lite, b"once upon a time")))
    with lite.database.write() as session:
        session.add(ModelFile(model_id=model_id, path="config.json", size=2))
    for path in ("/v1/plans", "/v1/jobs"):
        assert refusal(lite.post(path, json=wish)) == ("tokenizer_missing", f"/{purpose}/text")
    with lite.database.write() as session:
        session.add(ModelFile(model_id=model_id, path="tokenizer.json", size=2))
    assert lite.post("/v1/plans", json=wish).status_code == 200


def test_a_character_across_the_end_of_what_is_looked_at_is_no_fault(lite: Api) -> None:
    for before in range(4):
        content = b"x" * (HEAD_BYTES - before) + "😀".encode() + b" and so on"
        assert lite.post("/v1/plans", json=lite.body(**calibrated_on(add_text(lite, content)))).status_code == 200


@pytest.mark.parametrize("head", [b"PAR1\xff\xfe", b'\x90\xff\0\0\0\0\0\0{"pixel_values":\xff'])
def test_tables_and_tensors_are_data_to_calibrate_on_and_no_text_to_evaluate_on(lite: Api, head: bytes) -> None:
    upload_id = add_text(lite, head)
    statuses = [lite.post("/v1/plans", json=lite.body(**wish(upload_id))).status_code for wish in PURPOSES.values()]
    assert dict(zip(PURPOSES, statuses, strict=True)) == {"evaluation": 422, "calibration": 200}


def test_data_that_the_method_would_not_use_is_refused(lite: Api) -> None:
    fields = {"activations": {"scaling": "dynamic", "smooth": True}, "calibration": {}}
    config = quantization_config(JobSpec.model_validate(lite.body(**fields)))
    assert (lite.post("/v1/plans", json=lite.body(**fields)).status_code == 200) == config.needs_calibration
    for used in ({"activations": {"scaling": "static"}}, {"optimize": {"mode": "data_driven"}}):
        assert lite.post("/v1/plans", json=lite.body(**{**fields, **used})).status_code == 200


def test_what_is_no_language_model_writes_no_text_to_calibrate_on(lite: Api) -> None:
    model_id = lite.add_model(model_type="homegrown", config={"model_type": "homegrown"})
    response = lite.post("/v1/jobs", json=lite.body(model_id, optimize={"mode": "data_driven"}))
    assert (response.status_code, response.json()["code"]) == (422, "unsupported_architecture")
    assert "data_free" in response.json()["hint"]
    given = calibrated_on(add_text(lite, b"some words"))
    assert lite.post("/v1/jobs", json=lite.body(model_id, **given)).status_code == 202


@pytest.mark.parametrize("purpose", PURPOSES)
def test_a_text_stays_as_long_as_a_job_needs_it(api: Api, purpose: str) -> None:
    upload_id = add_text(api, b"some words")
    job = api.post("/v1/jobs", json=api.body(**PURPOSES[purpose](upload_id))).json()
    refused = api("DELETE", f"/v1/uploads/{upload_id}")
    assert (refused.status_code, refused.json()["code"]) == (409, "upload_in_use")
    assert job["id"] in refused.json()["detail"]
    with api.database.write() as session:
        session.get_one(Upload, upload_id).expires_at = datetime.now(UTC) - timedelta(days=1)
    with api.database.write() as session:
        assert uploads.purge_expired(session) == 0
    api.post(f"/v1/jobs/{job['id']}/cancel")
    with api.database.write() as session:
        assert uploads.purge_expired(session) == 1


def test_a_job_that_would_fill_the_disk_is_refused(make_settings: Callable[..., Settings], sqlite_url: str) -> None:
    with open_api(make_settings(database_url=sqlite_url, min_free_disk_bytes=1 << 60)) as api:
        response = api.post("/v1/jobs", json=api.body())
        assert (response.status_code, response.json()["code"]) == (507, "disk_full")
        assert str(1 << 60) in response.json()["detail"]


def test_a_model_deleted_between_check_and_write_is_not_found(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    model_id = api.add_model()
    prepare = submission.prepare

    def delete_after(*args: Any) -> Any:
        prepared = prepare(*args)
        assert api("DELETE", f"/v1/models/{model_id}").status_code == 204
        return prepared

    monkeypatch.setattr(submission, "prepare", delete_after)
    assert api.post("/v1/jobs", json=api.body(model_id)).status_code == 404


# Lists


def ids(response: Any) -> list[str]:
    assert response.status_code == 200, response.text
    return [job["id"] for job in response.json()["data"]]


def test_a_list_is_newest_first_and_pages_without_gaps_or_repetitions(api: Api) -> None:
    model_id = api.add_model()
    made = [api.add_job(model_id) for _ in range(5)]
    seen, cursor = [], None
    while True:
        page = api.get("/v1/jobs", params={"limit": 2, **({"cursor": cursor} if cursor else {})}).json()
        seen += [job["id"] for job in page["data"]]
        made_meanwhile = api.add_job(model_id)  # a new row does not shift the pages that follow
        cursor = page["next_cursor"]
        assert page["has_more"] == (cursor is not None)
        if cursor is None:
            break
    assert seen == made[::-1]
    assert made_meanwhile not in seen


def test_filters_narrow_a_list_together(api: Api) -> None:
    one, other = api.add_model(), api.add_model()
    nightly = api.add_job(one, labels={"pipeline": "nightly", "team/x.y": "a"})
    weekly = api.add_job(other, labels={"pipeline": "weekly"})
    done = api.add_job(other, labels={"pipeline": "nightly"}, spec={"evaluation": None, "gates": {"max_bytes": 1}})
    succeed(api.database, done)
    assert ids(api.get("/v1/jobs", params={"label.pipeline": "nightly"})) == [done, nightly]
    assert ids(api.get("/v1/jobs", params={"label.pipeline": "nightly", "model_id": other})) == [done]
    assert ids(api.get("/v1/jobs", params={"label.team/x.y": "a"})) == [nightly]
    assert ids(api.get("/v1/jobs", params={"label.team": "a"})) == []
    assert ids(api.get("/v1/jobs", params={"status": "queued"})) == [weekly, nightly]
    assert ids(api.get("/v1/jobs", params={"status": ["queued", "succeeded"]})) == [done, weekly, nightly]
    assert ids(api.get("/v1/jobs", params={"verdict": "failed"})) == [done]
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    earlier = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    assert ids(api.get("/v1/jobs", params={"created_after": later})) == []
    assert len(ids(api.get("/v1/jobs", params={"created_after": earlier}))) == 3
    assert ids(api.get("/v1/jobs", params={"created_before": earlier})) == []
    assert len(ids(api.get("/v1/jobs", params={"created_after": earlier, "created_before": later}))) == 3
    named = api.add_job(one, name="50% of _")
    assert ids(api.get("/v1/jobs", params={"name": "50% of _"})) == [named]
    assert ids(api.get("/v1/jobs", params={"name": "50% of x"})) == []


@pytest.mark.parametrize(
    "query",
    [
        "status=done",
        "created_after=2026-01-01T00:00:00",
        "verdict=maybe",
        "limit=0",
        "limit=201",
        "cursor=x",
        "label.=x",
        "label.%22=x",
    ],
)
def test_a_filter_that_makes_no_sense_is_refused(lite: Api, query: str) -> None:
    assert lite.get(f"/v1/jobs?{query}").status_code == 422


# Reading and waiting


def test_an_unchanged_job_is_304(lite: Api) -> None:
    path = f"/v1/jobs/{lite.add_job()}"
    tag = lite.get(path).headers["ETag"]
    unchanged = lite.get(path, {"If-None-Match": tag})
    assert (unchanged.status_code, unchanged.content, unchanged.headers["ETag"]) == (304, b"", tag)
    lite.post(f"{path}/cancel")
    assert lite.get(path, {"If-None-Match": tag}).status_code == 200


def test_a_long_poll_answers_as_soon_as_the_version_changes(api: Api) -> None:
    job_id = api.add_job()
    tag = api.get(f"/v1/jobs/{job_id}").headers["ETag"]
    timer = soon(0.4, lambda: claim(api.database, job_id))
    began = time.monotonic()
    response = api.get(f"/v1/jobs/{job_id}", {"If-None-Match": tag, "Prefer": "wait=20"})
    timer.join()
    assert (response.status_code, response.json()["status"]) == (200, "running")
    assert response.headers["Preference-Applied"] == "wait=20"
    assert 0.3 < time.monotonic() - began < 3


def test_a_long_poll_without_a_version_waits_for_the_end(lite: Api) -> None:
    job_id = lite.add_job()
    timer = soon(0.3, lambda: succeed(lite.database, job_id))
    response = lite.get(f"/v1/jobs/{job_id}", {"Prefer": "respond-async, wait=20"})
    timer.join()
    assert response.json()["status"] == "succeeded"


def test_a_long_poll_of_an_outdated_version_or_an_ended_job_does_not_wait(lite: Api) -> None:
    running, ended = lite.add_job(), lite.add_job()
    claim(lite.database, running)
    succeed(lite.database, ended)
    tag = lite.get(f"/v1/jobs/{ended}").headers["ETag"]
    began = time.monotonic()
    assert lite.get(f"/v1/jobs/{running}", {"If-None-Match": '"1"', "Prefer": "wait=20"}).status_code == 200
    assert lite.get(f"/v1/jobs/{ended}", {"Prefer": "wait=20"}).status_code == 200
    assert lite.get(f"/v1/jobs/{ended}", {"If-None-Match": tag, "Prefer": "wait=20"}).status_code == 304
    assert time.monotonic() - began < 2


def test_a_long_poll_that_sees_no_change_is_304_when_the_time_is_over(lite: Api) -> None:
    job_id = lite.add_job()
    tag = lite.get(f"/v1/jobs/{job_id}").headers["ETag"]
    began = time.monotonic()
    assert lite.get(f"/v1/jobs/{job_id}", {"If-None-Match": tag, "Prefer": "wait=1"}).status_code == 304
    assert 0.9 < time.monotonic() - began < 3


def test_a_long_poll_of_a_job_that_is_deleted_meanwhile_is_404(lite: Api) -> None:
    job_id = lite.add_job()

    def vanish() -> None:
        with lite.database.write() as session:
            repository.remove(session, session.get_one(Job, job_id))

    timer = soon(0.3, vanish)
    assert lite.get(f"/v1/jobs/{job_id}", {"Prefer": "wait=10"}).status_code == 404
    timer.join()


# Changing


def test_a_change_needs_the_version_that_was_seen(api: Api) -> None:
    path = f"/v1/jobs/{api.add_job(labels={'a': '1'})}"
    tag = api.get(path).headers["ETag"]
    assert api("PATCH", path, json={"priority": 5}).status_code == 428
    changed = api("PATCH", path, {"If-Match": tag}, json={"labels": {"b": "2"}, "name": "new"})
    assert changed.status_code == 200
    assert (changed.json()["labels"], changed.json()["name"], changed.json()["priority"]) == ({"b": "2"}, "new", 0)
    assert changed.headers["ETag"] != tag
    outdated = api("PATCH", path, {"If-Match": tag}, json={"priority": 5})
    assert (outdated.status_code, outdated.json()["code"]) == (412, "precondition_failed")
    assert api.get(path).json()["priority"] == 0
    events = api.get(f"{path}/events").json()["data"]
    assert [(event["seq"], event["type"]) for event in events] == [(1, "status"), (2, "changed")]
    assert events[1]["data"] == {"labels": {"b": "2"}, "name": "new"}


def test_a_change_while_a_worker_writes_names_the_version_and_breaks_nothing(api: Api) -> None:
    job_id = api.add_job()
    fence = claim(api.database, job_id)
    tag = api.get(f"/v1/jobs/{job_id}").headers["ETag"]
    assert api("PATCH", f"/v1/jobs/{job_id}", {"If-Match": tag}, json={"priority": 5}).status_code == 200
    with api.database.write() as session:
        record(session, session.get_one(Job, job_id), "log", {"message": "x"}, fence=fence)
    events = api.get(f"/v1/jobs/{job_id}/events").json()["data"]
    assert [event["seq"] for event in events] == [1, 2, 3, 4]


def test_a_list_finds_jobs_by_the_labels_they_have_now(api: Api) -> None:
    job, other = (api.add_job(labels={"a": "1", "b": "2"}) for _ in range(2))
    assert api("PATCH", f"/v1/jobs/{job}", {"If-Match": "*"}, json={"labels": {"a": "3"}}).status_code == 200
    for query, found in {"a=1": [other], "a=3": [job], "b=2": [other], "a=2": []}.items():
        assert ids(api.get(f"/v1/jobs?label.{query}")) == found
    assert ids(api.get("/v1/jobs?label.a=1&label.b=2")) == [other]
    assert ids(api.another_tenant().get("/v1/jobs?label.a=1")) == []
    api.post(f"/v1/jobs/{other}/cancel")
    assert api("DELETE", f"/v1/jobs/{other}").status_code == 204
    assert ids(api.get("/v1/jobs?label.a=1")) == []


def test_a_list_by_label_has_pages(api: Api) -> None:
    jobs = [api.add_job(labels={"a": "1"}) for _ in range(5)]
    pages, cursor = [], None
    while cursor is not None or not pages:
        page = api.get("/v1/jobs", params={"label.a": "1", "limit": 2, **({"cursor": cursor} if cursor else {})})
        pages.append(ids(page))
        cursor = page.json()["next_cursor"]
    assert pages == [jobs[:2:-1], jobs[2:0:-1], jobs[:1]]


def test_labels_of_an_ended_job_can_change_and_nothing_else_about_it(lite: Api) -> None:
    job_id = lite.add_job()
    succeed(lite.database, job_id)
    before = lite.get(f"/v1/jobs/{job_id}").json()
    changed = lite("PATCH", f"/v1/jobs/{job_id}", {"If-Match": "*"}, json={"labels": {"kept": "yes"}}).json()
    assert {key for key in before if before[key] != changed[key]} == {"labels", "version"}
    assert lite.get(f"/v1/jobs/{job_id}/events").json()["data"][-1]["data"]["to"] == "succeeded"
    assert lite("PATCH", f"/v1/jobs/{job_id}", {"If-Match": "*"}, json={"status": "queued"}).status_code == 422


# Cancelling, deleting, retrying


def test_a_waiting_job_is_cancelled_at_once_and_a_running_one_by_its_worker(api: Api) -> None:
    waiting, running = api.add_job(), api.add_job()
    fence = claim(api.database, running)
    assert api.post(f"/v1/jobs/{waiting}/cancel").json()["status"] == "cancelled"
    for _ in range(2):
        assert api.post(f"/v1/jobs/{running}/cancel").json()["status"] == "cancelling"
    with api.database.write() as session:
        outcomes.finish_cancel(session, session.get_one(Job, running), fence)
    ended = api.post(f"/v1/jobs/{running}/cancel")
    assert (ended.status_code, ended.json()["status"]) == (200, "cancelled")
    moves = [event["data"]["to"] for event in api.get(f"/v1/jobs/{running}/events").json()["data"]]
    assert moves == ["queued", "running", "cancelling", "cancelled"]


def test_cancelling_while_a_worker_writes_always_works(api: Api) -> None:
    job_id = api.add_job()
    fence = claim(api.database, job_id)
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            with api.database.write() as session:
                record(session, session.get_one(Job, job_id), "log", {}, fence=fence)

    with ThreadPoolExecutor(2) as pool:
        writers = [pool.submit(write) for _ in range(2)]
        time.sleep(0.2)
        response = api.post(f"/v1/jobs/{job_id}/cancel")
        stop.set()
    assert response.status_code == 200, response.text
    assert [writer.exception() for writer in writers] == [None, None]


def test_only_an_ended_job_can_be_deleted_and_then_nothing_of_it_is_left(api: Api) -> None:
    body = api.body()
    job_id = api.post("/v1/jobs", {"Idempotency-Key": "k"}, json=body).json()["id"]
    refused = api("DELETE", f"/v1/jobs/{job_id}")
    assert (refused.status_code, refused.json()["code"]) == (409, "job_not_terminal")
    succeed(api.database, job_id)
    assert api("DELETE", f"/v1/jobs/{job_id}").status_code == 204
    assert api.get(f"/v1/jobs/{job_id}").status_code == api("DELETE", f"/v1/jobs/{job_id}").status_code == 404
    with api.database.read() as session:
        for table in (Job, JobEvent, JobLayer, Artifact, OutboxMessage, IdempotencyKey):
            assert session.scalars(select(table)).all() == []


def test_a_retry_is_a_new_job_with_the_same_wish(api: Api) -> None:
    body = api.body(weights={"bits": 5}, labels={"a": "1"}, name="n", priority=2, timeout_s=60)
    first = api.post("/v1/jobs", json=body).json()
    assert api.post(f"/v1/jobs/{first['id']}/retry").status_code == 409
    fail(api.database, first["id"])
    failed = api.get(f"/v1/jobs/{first['id']}").json()
    assert (failed["status"], failed["error"]["code"], failed["error"]["retryable"]) == ("failed", "oom_host", True)
    response = api.post(f"/v1/jobs/{first['id']}/retry", {"Idempotency-Key": "again"})
    second = response.json()
    assert response.status_code == 202
    assert second["id"] != first["id"]
    for field in ("config", "labels", "name", "priority", "timeout_s"):
        assert second[field] == first[field]
    replayed = api.post(f"/v1/jobs/{first['id']}/retry", {"Idempotency-Key": "again"})
    assert replayed.json()["id"] == second["id"]
    assert (second["retry_of"], first["retry_of"]) == (first["id"], None)
    assert api.get(f"/v1/jobs/{first['id']}").json() == failed
    succeed(api.database, second["id"])
    refused = api.post(f"/v1/jobs/{second['id']}/retry")
    assert (refused.status_code, refused.json()["code"]) == (409, "job_succeeded")


# Layers


def test_layers_come_in_checkpoint_order_and_in_pages(api: Api) -> None:
    job_id = api.add_job()
    fence = claim(api.database, job_id)
    names = [f"layer.{number}" for number in range(5)]
    with api.database.write() as session:
        layers = [make_layer(name) for name in names]
        outcomes.succeed(session, session.get_one(Job, job_id), fence, make_result(), layers, [])
    seen, cursor = [], None
    while True:
        params = {"limit": 2, **({"cursor": cursor} if cursor is not None else {})}
        page = api.get(f"/v1/jobs/{job_id}/layers", params=params).json()
        seen += [layer["name"] for layer in page["data"]]
        cursor = page["next_cursor"]
        if not page["has_more"]:
            break
    assert seen == names


def test_layers_are_narrowed_by_name_and_tell_their_histogram_where_it_is_asked_for(api: Api) -> None:
    job_id = api.add_job()
    fence = claim(api.database, job_id)
    with api.database.write() as session:
        layers = [make_layer(name, histogram=[1, 2, number]) for number, name in enumerate("abc")]
        layers.append(make_layer("left alone", bits=None))
        outcomes.succeed(session, session.get_one(Job, job_id), fence, make_result(), layers, [])
    path = f"/v1/jobs/{job_id}/layers"
    assert {layer["histogram"] for layer in api.get(path).json()["data"]} == {None}
    found = api.get(path, params={"include": "histogram", "name": ["c", "left alone", "nobody"]}).json()
    assert [(layer["name"], layer["histogram"]) for layer in found["data"]] == [("c", [1, 2, 2]), ("left alone", None)]


@pytest.mark.parametrize(("headers", "query"), [({"Accept": "text/csv"}, ""), ({}, "?format=csv")])
def test_layers_as_csv_have_a_header_and_a_row_each(lite: Api, headers: dict[str, str], query: str) -> None:
    job_id = lite.add_job()
    succeed(lite.database, job_id)
    response = lite.get(f"/v1/jobs/{job_id}/layers{query}", headers)
    assert response.headers["Content-Type"] == "text/csv; charset=utf-8"
    header, first, second = response.text.splitlines()
    assert header.startswith("name,shape,params")
    assert first.startswith("a,128x64,8192,16384,4352,4,64,signed,0.75")
    assert first.endswith(",0.995,,0.25,8")
    assert second.endswith(",excluded,,")


def test_a_body_is_hashed_by_content_not_by_order() -> None:
    one = JobCreate.model_validate({"model": {"id": "m"}, "weights": {"bits": 3, "group_size": 32}})
    other = JobCreate.model_validate({"weights": {"group_size": 32, "bits": 3}, "model": {"id": "m"}})
    hashes = {content_hash(body.model_dump(mode="json")) for body in (one, other)}
    assert len(hashes) == 1
