"""Who did what: one entry for each change, in the transaction of the change, without secrets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import timedelta

from sqlalchemy import select

from app.audit.retention import forget_old_records
from app.core.clock import now
from app.db.tables import ApiKey, AuditEntry
from app.settings import Settings
from nupes_client.schemas.audit import AuditAction
from tests.app.api import Api
from tests.app.test_problems import problem
from tests.stack import as_environment


def actions(api: Api, query: str = "") -> list[str]:
    return [entry["action"] for entry in api.get(f"/v1/audit?{query}").json()["data"]]


def test_an_entry_says_who_what_where_from_and_in_which_request(api: Api) -> None:
    made = api.post("/v1/keys", {"X-Request-Id": "my-request-1"}, json={"name": "ci", "scopes": ["jobs:read"]}).json()
    with api.database.read() as session:
        own = session.scalars(select(ApiKey.id).where(ApiKey.tenant_id == api.tenant_id, ApiKey.name == "test")).one()
    entry = api.get("/v1/audit").json()["data"][0]
    assert entry.pop("id").startswith("aud_")
    assert entry.pop("created_at")
    assert entry == {
        "action": "key.created",
        "resource_id": made["id"],
        "key_id": own,
        "address": "testclient",
        "request_id": "my-request-1",
    }


def test_changes_of_jobs_models_uploads_and_keys_are_noted(api: Api) -> None:
    upload = api.post("/v1/uploads", json={"filename": "a", "size": 1}).json()["id"]
    api("DELETE", f"/v1/uploads/{upload}")
    job = api.post("/v1/jobs", json=api.body()).json()["id"]
    api("PATCH", f"/v1/jobs/{job}", {"If-Match": "*"}, json={"priority": 1})
    api.post(f"/v1/jobs/{job}/cancel")
    retried = api.post(f"/v1/jobs/{job}/retry").json()["id"]
    api("DELETE", f"/v1/jobs/{job}")
    model = api.add_model()
    api("DELETE", f"/v1/models/{model}")
    key = api.post("/v1/keys", json={"name": "k", "scopes": ["jobs:read"]}).json()["id"]
    api.post(f"/v1/keys/{key}/rotate")
    api("DELETE", f"/v1/keys/{key}")
    assert actions(api)[::-1] == [
        *("upload.created", "upload.deleted"),
        *("job.created", "job.changed", "job.cancelled", "job.created", "job.deleted"),
        *("model.deleted", "key.created", "key.rotated", "key.revoked"),
    ]
    assert actions(api, f"resource_id={retried}") == ["job.created"]
    assert actions(api, f"resource_id={job}&action=job.deleted") == ["job.deleted"]


def test_what_is_refused_leaves_no_entry(api: Api) -> None:
    problem(api.post("/v1/jobs", json=api.body("mdl_unknown")), 404, "not_found")
    problem(api("DELETE", "/v1/jobs/job_unknown"), 404, "not_found")
    job = api.add_job()
    problem(api("DELETE", f"/v1/jobs/{job}"), 409, "job_not_terminal")
    assert actions(api) == []


def test_a_repeated_submission_is_one_entry(api: Api) -> None:
    body = api.body()
    for _ in range(2):
        assert api.post("/v1/jobs", {"Idempotency-Key": "once"}, json=body).status_code == 202
    assert actions(api) == ["job.created"]


def test_pages_and_times_narrow_and_other_tenants_see_nothing(api: Api) -> None:
    for number in range(5):
        api.post("/v1/keys", json={"name": f"k{number}", "scopes": ["jobs:read"]})
    seen, cursor = [], None
    while True:
        page = api.get("/v1/audit", params={"limit": 2, **({"cursor": cursor} if cursor else {})}).json()
        seen += [entry["id"] for entry in page["data"]]
        if (cursor := page["next_cursor"]) is None:
            break
    assert len(seen) == len(set(seen)) == 5
    later = (now() + timedelta(minutes=1)).isoformat().replace("+00:00", "Z")
    assert actions(api, f"created_after={later}") == []
    assert len(actions(api, f"created_before={later}")) == 5
    assert actions(api.another_tenant()) == []
    problem(api.another_tenant(["keys:manage"]).get("/v1/audit"), 403, "insufficient_scope")
    problem(api.get("/v1/audit?action=nonsense"), 422, "validation_error")


def test_no_entry_holds_a_secret(api: Api) -> None:
    made = api.post("/v1/keys", json={"name": "ci", "scopes": ["jobs:read"]}).json()
    new = api.post(f"/v1/keys/{made['id']}/rotate").json()
    text = json.dumps(api.get("/v1/audit").json())
    for secret in (made["secret"], new["secret"], api.headers["Authorization"]):
        assert secret[33:] not in text


def test_old_entries_are_forgotten(api: Api, settings: Settings) -> None:
    api.post("/v1/keys", json={"name": "old", "scopes": ["jobs:read"]})
    api.post("/v1/keys", json={"name": "new", "scopes": ["jobs:read"]})
    with api.database.write() as session:
        session.scalars(select(AuditEntry).order_by(AuditEntry.id)).first().created_at = now() - timedelta(days=31)  # type: ignore[union-attr]
    assert forget_old_records(api.database, settings.model_copy(update={"audit_retention_days": 30})) == (1, 0)
    assert len(actions(api)) == 1


def test_commands_on_the_server_are_noted_without_a_key(api: Api, settings: Settings) -> None:
    command = [sys.executable, "-m", "app.keys", "create", "--tenant", "acme", "--name", "ci"]
    env = {**os.environ, **as_environment(settings)}
    subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    with api.database.read() as session:
        entry = session.scalars(select(AuditEntry)).one()
    assert (entry.action, entry.key_id, entry.address) == (AuditAction.KEY_CREATED, None, None)
