"""Jobs that are answered from what an earlier one computed."""

from __future__ import annotations

import hashlib
import threading
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, update

from app.db.tables import Job, JobMetric, ModelFile, OutboxMessage, Upload
from app.jobs import cache, outcomes
from app.jobs.metrics import Point, write_points
from app.storage.garbage import collect
from tests.app.api import Api
from tests.app.jobrows import claim, make_file, make_layer, make_result
from tests.worker.factory import wait_for

CONTENT = b"weights"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def add_model(api: Api, sha256: str | None = "c" * 64, **columns: Any) -> str:
    model_id = api.add_model(**columns)
    with api.database.write() as session:
        session.add(ModelFile(model_id=model_id, path="model.safetensors", size=3, sha256=sha256))
        session.add(ModelFile(model_id=model_id, path="tokenizer.json", size=3, sha256="d" * 64))
    return model_id


def submit(api: Api, model_id: str, **fields: Any) -> dict[str, Any]:
    response = api.post("/v1/jobs", json=api.body(model_id, **fields))
    assert response.status_code == 202, response.text
    return dict(response.json())


def compute(api: Api, job: dict[str, Any]) -> str:
    """What a worker would do; its one file is really stored."""
    api.app.state.store.put_stream([CONTENT])
    fence = claim(api.database, job["id"])
    with api.database.write() as session:
        row = session.get_one(Job, job["id"])
        write_points(session, job["id"], fence, [Point.of("loss", 0, 1.5)])
        files = [make_file("model.safetensors", SHA256, len(CONTENT))]
        outcomes.succeed(session, row, fence, make_result(), [make_layer(histogram=[1, 2])], files)
    return str(job["id"])


def artifact_of(api: Api, job_id: str) -> dict[str, Any]:
    (artifact,) = api.get(f"/v1/jobs/{job_id}/artifacts").json()["data"]
    return dict(artifact)


def test_an_equal_job_is_answered_at_once_with_files_and_figures_of_its_own(api: Api) -> None:
    model_id = add_model(api)
    first = compute(api, submit(api, model_id))
    second = submit(api, model_id, name="again")
    assert (second["status"], second["cache_hit"], second["is_terminal"]) == ("succeeded", True, True)
    mine, theirs = artifact_of(api, second["id"]), artifact_of(api, first)
    assert mine["id"] != theirs["id"]
    assert (mine["sha256"], mine["path"], mine["size"]) == (theirs["sha256"], theirs["path"], theirs["size"])
    for part in ("layers?include=histogram", "metrics"):
        parts = [api.get(f"/v1/jobs/{job_id}/{part}").json()["data"] for job_id in (first, second["id"])]
        assert parts[0] == parts[1] != []
    events = api.get(f"/v1/jobs/{second['id']}/events").json()["data"]
    assert [(event["seq"], event["data"]["to"]) for event in events] == [(1, "queued"), (2, "succeeded")]
    assert events[1]["data"]["cached_from"] == first
    with api.database.read() as session:
        assert session.scalars(select(OutboxMessage).where(OutboxMessage.job_id == second["id"])).all() == []


def test_a_job_that_pushes_gets_the_files_and_waits_for_a_worker_to_push_them(api: Api) -> None:
    assert api.post("/v1/secrets", json={"name": "team", "value": "hf_x"}).status_code == 201
    model_id = add_model(api)
    first = compute(api, submit(api, model_id))
    second = submit(api, model_id, push_to_hub={"repo": "team/tiny", "secret": "team"})
    assert (second["status"], second["cache_hit"], second["memory_bytes"]) == ("queued", True, None)
    assert artifact_of(api, second["id"])["sha256"] == artifact_of(api, first)["sha256"]
    assert api.post(f"/v1/jobs/{second['id']}/cancel").json()["status"] == "cancelled"
    assert api("DELETE", f"/v1/jobs/{first}").status_code == 204
    third = submit(api, model_id)  # of one that was cancelled, but has a result
    assert (third["status"], third["cache_hit"]) == ("succeeded", True)


def test_gates_judge_the_cached_result_anew(lite: Api) -> None:
    model_id = add_model(lite)
    compute(lite, submit(lite, model_id))
    verdicts = {limit: submit(lite, model_id, gates={"max_bytes": limit})["verdict"] for limit in (299, 300)}
    assert verdicts == {299: "failed", 300: "passed"}


def test_either_of_the_two_can_be_deleted_and_the_bytes_stay_for_the_other(api: Api) -> None:
    model_id = add_model(api)
    first = compute(api, submit(api, model_id))
    second = submit(api, model_id)["id"]
    assert api("DELETE", f"/v1/jobs/{first}").status_code == 204
    for _ in range(2):  # dooms, then deletes
        assert collect(api.database, api.app.state.store, timedelta(seconds=-10)) == 0
    assert list(api.app.state.store.doomed()) == []
    assert api.get(artifact_of(api, second)["content_url"]).content == CONTENT
    third = submit(api, model_id)
    assert third["cache_hit"] is True
    assert third["id"] != second


def test_what_is_not_equal_is_computed(lite: Api) -> None:
    model_id = add_model(lite)
    compute(lite, submit(lite, model_id))
    other_bytes = add_model(lite, "d" * 64)
    assert not submit(lite, other_bytes)["cache_hit"]
    assert not submit(lite, model_id, weights={"bits": 5})["cache_hit"]
    assert not submit(lite, model_id, seed=1)["cache_hit"]
    assert not submit(lite, model_id, cache=False)["cache_hit"]
    assert submit(lite, add_model(lite))["cache_hit"]  # another registration of the same bytes


def test_files_without_a_hash_are_known_by_the_commit_they_come_from(lite: Api) -> None:
    sources = {name: {"type": "hub", "repo_id": "org/m", "commit": name * 40} for name in "ab"}
    compute(lite, submit(lite, add_model(lite, None, source=sources["a"])))
    hits = {name: submit(lite, add_model(lite, None, source=sources[name]))["cache_hit"] for name in "ab"}
    assert hits == {"a": True, "b": False}


def test_texts_are_known_by_their_bytes(lite: Api) -> None:
    def add_text(content: bytes) -> dict[str, Any]:
        blob = lite.app.state.store.put_stream([content])
        upload = Upload(tenant_id=lite.tenant_id, filename="t", size=blob.size, sha256=blob.sha256)
        with lite.database.write() as session:
            session.add(upload)
        return {"evaluation": {"metrics": ["perplexity"], "text": {"upload_id": upload.id}}}

    model_id = add_model(lite)
    compute(lite, submit(lite, model_id, **add_text(b"some words")))
    assert submit(lite, model_id, **add_text(b"some words"))["cache_hit"]
    assert not submit(lite, model_id, **add_text(b"other words"))["cache_hit"]


def test_another_tenant_gets_nothing_from_the_cache(api: Api) -> None:
    compute(api, submit(api, add_model(api)))
    stranger = api.another_tenant()
    assert not submit(stranger, add_model(stranger))["cache_hit"]


def test_a_result_of_other_code_or_without_its_bytes_is_no_answer(lite: Api) -> None:
    model_id = add_model(lite)
    first = compute(lite, submit(lite, model_id))
    lite.app.state.store.doom(SHA256)
    lite.app.state.store.purge(SHA256)
    assert not submit(lite, model_id)["cache_hit"]
    lite.app.state.store.put_stream([CONTENT])
    assert submit(lite, model_id)["cache_hit"]
    with lite.database.write() as session:
        session.execute(update(Job).values(code_version="0" * 64))
    assert not submit(lite, model_id)["cache_hit"]
    assert first


def test_a_source_that_is_deleted_in_between_is_missed_or_waited_for_never_half_used(api: Api) -> None:
    model_id = add_model(api)
    first = compute(api, submit(api, model_id))
    waiting = submit(api, model_id, cache=False)["id"]
    deleted = threading.Event()

    def delete() -> None:
        assert api("DELETE", f"/v1/jobs/{first}").status_code == 204
        deleted.set()

    with api.database.write() as session:
        job = session.get_one(Job, waiting)
        answer = cache.find(session, job, lock=True)
        assert answer is not None
        thread = threading.Thread(target=delete)
        thread.start()
        assert not deleted.wait(0.5), "the source of an answer was deleted while it was being used"
        cache.answer_from(session, job, answer)
    wait_for(deleted.is_set, 30, "deletion")
    thread.join()
    assert artifact_of(api, waiting)["sha256"] == SHA256
    with api.database.read() as session:
        assert session.scalars(select(JobMetric.job_id)).all() == [waiting]


def test_a_source_that_goes_before_it_can_be_held_costs_the_answer_and_not_the_job(
    lite: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_id = add_model(lite)
    first = compute(lite, submit(lite, model_id))
    lasting = cache.lasting

    def delete_after(*args: Any) -> bool:
        found = lasting(*args)
        assert lite("DELETE", f"/v1/jobs/{first}").status_code == 204
        return found

    monkeypatch.setattr(cache, "lasting", delete_after)
    job = submit(lite, model_id)
    assert (job["status"], job["cache_hit"]) == ("queued", False)


def test_a_retry_may_be_answered_from_the_cache(lite: Api) -> None:
    model_id = add_model(lite)
    cancelled = submit(lite, model_id)["id"]
    lite.post(f"/v1/jobs/{cancelled}/cancel")
    compute(lite, submit(lite, model_id))
    again = lite.post(f"/v1/jobs/{cancelled}/retry").json()
    assert (again["cache_hit"], again["retry_of"]) == (True, cancelled)
