"""Nobody sees, changes or learns of what belongs to another tenant; nobody does more than the key allows.

The routes are taken from the service itself, so that none can be forgotten: see tests/app/routes.py.
"""

from __future__ import annotations

import re
from typing import Any, get_args

from sqlalchemy import select

from app.db.tables import Base
from nupes_client.schemas.keys import Scope
from tests.app.api import Api
from tests.app.routes import ANY_KEY, PUBLIC, REFERENCES, documented, fill, make_things, references, routes

TIMES_OF_USE = {"last_used_at"}
"""Columns that reading changes."""
REQUEST_ID = re.compile(r'"request_id": "[^"]*"')


def missing(names: dict[str, str]) -> dict[str, str]:
    return {name: identifier[:-4] + "0000" for name, identifier in names.items()}


def rows_of(api: Api) -> list[tuple[Any, ...]]:
    """Everything the database holds of a tenant."""
    found = []
    with api.database.read() as session:
        for table in Base.metadata.sorted_tables:
            if "tenant_id" in table.columns:
                columns = [column for column in table.columns if column.name not in TIMES_OF_USE]
                query = select(*columns).where(table.c.tenant_id == api.tenant_id).order_by(*table.primary_key)
                found += [(table.name, *row) for row in session.execute(query)]
    return found


def without_ids(text: str, names: dict[str, str]) -> str:
    for identifier in names.values():
        text = text.replace(identifier, "ID")
    return REQUEST_ID.sub("", text)


def test_every_documented_route_is_walked(lite: Api) -> None:
    assert documented(lite.app)
    assert documented(lite.app) <= set(routes(lite.app))


def test_what_belongs_to_another_tenant_looks_like_what_does_not_exist(api: Api) -> None:
    foreign = make_things(api)
    before = rows_of(api)
    assert before
    stranger = api.another_tenant()
    for route in [route for route in routes(api.app) if route.parameters]:
        unknown = set(route.parameters) - foreign.keys()
        assert not unknown, f"{route.name}: tests/app/routes.py has no sample of {unknown}"
        answers = []
        for names in (foreign, missing(foreign)):
            response = stranger(route.method, route.url(names), **route.options)
            assert response.status_code == 404, (route.name, response.status_code, response.text)
            answers.append(without_ids(response.text, names))
        assert answers[0] == answers[1], route.name
    assert rows_of(api) == before


def test_a_request_that_names_what_belongs_to_another_tenant_finds_nothing(api: Api) -> None:
    foreign = make_things(api)
    stranger = api.another_tenant()
    own = {"own_model_id": stranger.add_model()}
    for reference, options in REFERENCES.items():
        method, path, _ = reference.split()
        answers = []
        for names in (foreign, missing(foreign)):
            response = stranger(method, path, **fill(options, {**names, **own}))
            assert response.status_code in {404, 422}, (reference, response.status_code, response.text)
            assert "not_found" in response.json()["code"], (reference, response.text)
            answers.append(without_ids(response.text, names))
        assert answers[0] == answers[1], reference


def test_every_id_in_a_body_is_tried(lite: Api) -> None:
    found = references(lite.app)
    assert "POST /v1/jobs model.id" in found
    assert found <= REFERENCES.keys() | SAME_CODE


SAME_CODE = {"POST /v1/plans calibration.text.upload_id"}
"""The body of a plan is that of a job."""


def test_lists_hold_only_what_is_the_tenants_own(api: Api) -> None:
    foreign = make_things(api)
    stranger = api.another_tenant()
    own = make_things(stranger)
    lists = [route for route in routes(api.app) if route.method == "GET" and not route.parameters]
    pages = {route.path: stranger.get(route.path) for route in lists if route.path not in PUBLIC}
    for path, response in pages.items():
        assert not [name for name, identifier in foreign.items() if identifier in response.text], path
    assert own["job_id"] in pages["/v1/jobs"].text
    assert own["artifact_id"] in pages["/v1/artifacts"].text
    narrowed = (f"jobs?model_id={foreign['model_id']}", f"artifacts?job_id={foreign['job_id']}")
    for query in (*narrowed, f"audit?resource_id={foreign['key_id']}", "jobs?label.secret=no"):
        assert stranger.get(f"/v1/{query}").json()["data"] == []


def test_a_cursor_of_another_tenant_opens_nothing(api: Api) -> None:
    for _ in range(2):
        api.add_job()
    cursor = api.get("/v1/jobs?limit=1").json()["next_cursor"]
    assert api.another_tenant().get("/v1/jobs", params={"cursor": cursor}).json()["data"] == []


def test_without_a_key_nothing_answers_but_what_is_public(lite: Api) -> None:
    names = make_things(lite)
    for route in routes(lite.app):
        response = lite.client.request(route.method, route.url(names), **route.options)
        assert (response.status_code == 401) == (route.path not in PUBLIC), (route.name, response.status_code)
        if route.path not in PUBLIC:
            assert response.headers["WWW-Authenticate"]


def test_each_route_opens_to_one_scope_or_to_admin_alone(lite: Api) -> None:
    names = missing(make_things(lite))
    scopes = [scope for scope in get_args(Scope) if scope != "admin"]
    users = {scope: lite.another_tenant([scope]) for scope in scopes}
    for route in routes(lite.app):
        if route.path in PUBLIC:
            continue
        answers = {scope: user(route.method, route.url(names), **route.options) for scope, user in users.items()}
        opened = [scope for scope, response in answers.items() if response.status_code != 403]
        assert len(opened) == len(scopes) if route.path in ANY_KEY else len(opened) <= 1, (route.name, opened)
        for scope in set(scopes) - set(opened):
            if route.method != "HEAD":
                assert answers[scope].json()["code"] == "insufficient_scope", route.name
        assert lite(route.method, route.url(names), **route.options).status_code not in {401, 403}, route.name


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
