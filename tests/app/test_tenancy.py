"""Nobody sees, changes or learns of what belongs to another tenant; nobody does more than the key allows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from app.db.tables import Job
from app.jobs import outcomes
from app.settings import Settings
from tests.app.api import Api, open_api
from tests.app.jobrows import claim, make_file, make_layer, make_result

PATCH = {"json": {"priority": 1}, "headers": {"If-Match": "*"}}
ON_A_JOB: dict[str, tuple[str, str, dict[str, Any]]] = {
    "get": ("GET", "/v1/jobs/{job}", {}),
    "wait": ("GET", "/v1/jobs/{job}", {"headers": {"Prefer": "wait=20"}}),
    "change": ("PATCH", "/v1/jobs/{job}", PATCH),
    "delete": ("DELETE", "/v1/jobs/{job}", {}),
    "cancel": ("POST", "/v1/jobs/{job}/cancel", {}),
    "retry": ("POST", "/v1/jobs/{job}/retry", {}),
    "events": ("GET", "/v1/jobs/{job}/events", {}),
    "stream": ("GET", "/v1/jobs/{job}/events/stream", {}),
    "layers": ("GET", "/v1/jobs/{job}/layers", {}),
    "metrics": ("GET", "/v1/jobs/{job}/metrics", {}),
    "layers as csv": ("GET", "/v1/jobs/{job}/layers?format=csv", {}),
    "artifacts": ("GET", "/v1/jobs/{job}/artifacts", {}),
    "archive": ("GET", "/v1/jobs/{job}/artifacts.tar", {}),
    "artifact": ("GET", "/v1/artifacts/{artifact}", {}),
    "content": ("GET", "/v1/artifacts/{artifact}/content", {}),
    "head of content": ("HEAD", "/v1/artifacts/{artifact}/content", {}),
    "plan": ("POST", "/v1/plans", {"json": {"model": {"id": "{model}"}, "evaluation": None}}),
    "create": ("POST", "/v1/jobs", {"json": {"model": {"id": "{model}"}, "evaluation": None}}),
}


@pytest.fixture
def api(settings: Settings) -> Iterator[Api]:
    with open_api(settings) as api:
        yield api


def make_ended_job(api: Api) -> dict[str, str]:
    model_id = api.add_model()
    job_id = api.add_job(model_id, labels={"secret": "yes"})
    fence = claim(api.database, job_id)
    with api.database.write() as session:
        job = session.get_one(Job, job_id)
        outcomes.succeed(session, job, fence, make_result(), [make_layer()], [make_file()])
    artifact = api.get(f"/v1/jobs/{job_id}/artifacts").json()["data"][0]
    return {"job": job_id, "model": model_id, "artifact": artifact["id"]}


def fill(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: fill(inner, names) for key, inner in value.items()}
    return re.sub(r"\{(\w+)\}", lambda m: names[m[1]], value) if isinstance(value, str) else value


def test_what_belongs_to_another_tenant_looks_like_what_does_not_exist(api: Api) -> None:
    foreign = make_ended_job(api)
    missing = {name: identifier[:-4] + "0000" for name, identifier in foreign.items()}
    before = api.get(f"/v1/jobs/{foreign['job']}").json()
    stranger = api.another_tenant()
    for name, (method, path, options) in ON_A_JOB.items():
        answers = []
        for names in (foreign, missing):
            response = stranger(method, fill(path, names), **fill(options, names))
            assert response.status_code == 404, name
            text = response.text
            for identifier in names.values():
                text = text.replace(identifier, "ID")
            answers.append(re.sub(r'"request_id": "[^"]*"', "", text))
        assert answers[0] == answers[1], name
    assert api.get(f"/v1/jobs/{foreign['job']}").json() == before


def test_lists_hold_only_what_is_the_tenants_own(api: Api) -> None:
    foreign = make_ended_job(api)
    stranger = api.another_tenant()
    own = make_ended_job(stranger)
    assert [job["id"] for job in stranger.get("/v1/jobs").json()["data"]] == [own["job"]]
    assert [job["id"] for job in stranger.get("/v1/jobs?label.secret=yes").json()["data"]] == [own["job"]]
    assert [a["id"] for a in stranger.get("/v1/artifacts").json()["data"]] == [own["artifact"]]
    for query in (f"/v1/jobs?model_id={foreign['model']}", f"/v1/artifacts?job_id={foreign['job']}"):
        assert stranger.get(query).json()["data"] == []


def test_a_cursor_of_another_tenant_opens_nothing(api: Api) -> None:
    for _ in range(2):
        make_ended_job(api)
    cursor = api.get("/v1/jobs?limit=1").json()["next_cursor"]
    assert api.another_tenant().get("/v1/jobs", params={"cursor": cursor}).json()["data"] == []


def test_without_a_key_nothing_answers(api: Api) -> None:
    names = make_ended_job(api)
    for name, (method, path, options) in ON_A_JOB.items():
        response = api.client.request(method, fill(path, names), **fill(options, names))
        assert response.status_code == 401, name


def test_a_key_does_only_what_its_scopes_say(api: Api) -> None:
    reader = api.another_tenant(["jobs:read"])
    writer = api.another_tenant(["jobs:write"])
    job_id = reader.add_job()
    assert reader.get(f"/v1/jobs/{job_id}").status_code == 200
    assert reader.post("/v1/plans", json=reader.body()).status_code == 200
    for method, path in (("POST", "/v1/jobs"), ("POST", f"/v1/jobs/{job_id}/cancel"), ("DELETE", f"/v1/jobs/{job_id}")):
        response = reader(method, path, json=reader.body() if path == "/v1/jobs" else None)
        assert (response.status_code, response.json()["code"]) == (403, "insufficient_scope"), path
    assert reader.get("/v1/artifacts").status_code == 403
    assert writer.post("/v1/jobs", json=writer.body()).status_code == 202
    assert writer.get("/v1/jobs").status_code == 403
