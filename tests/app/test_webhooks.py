"""`/v1/webhooks` and the messages that changes of jobs write."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select, update

from app.core.clock import now
from app.db.session import Database
from app.db.tables import Job, Webhook, WebhookDelivery
from app.jobs import outcomes, transitions
from app.jobs.service import cancel
from app.webhooks import service
from app.webhooks.results import record
from app.webhooks.sending import Outcome, Parcel
from nupes_client.schemas.jobs import JobError, JobStatus
from nupes_client.schemas.problems import JobErrorCode
from nupes_client.schemas.webhooks import DeliveryErrorCode, WebhookEvent, WebhookMessage
from tests.app.api import Api
from tests.app.jobrows import claim, make_result

URL = "https://receiver.example/hook"
ALL = [event.value for event in WebhookEvent]


def make(api: Api, **fields: Any) -> dict[str, Any]:
    response = api.post("/v1/webhooks", json={"url": URL, **fields})
    assert response.status_code == 201, response.text
    return dict(response.json())


def messages(api: Api, webhook: dict[str, Any]) -> list[WebhookMessage]:
    """What was written for a webhook, oldest first."""
    query = select(WebhookDelivery.body).where(WebhookDelivery.webhook_id == webhook["id"]).order_by(WebhookDelivery.id)
    with api.database.read() as session:
        return [WebhookMessage.model_validate_json(body) for body in session.scalars(query)]


def types(api: Api, webhook: dict[str, Any]) -> list[str]:
    return [str(message.type) for message in messages(api, webhook)]


def test_a_webhook_is_made_read_listed_changed_and_deleted(api: Api) -> None:
    made = make(api, name="ci", labels={"pipeline": "nightly"})
    assert made["secret"].startswith("whsec_")
    assert made["events"] == ["job.succeeded", "job.failed", "job.cancelled"]
    assert made["enabled"] is True
    path = f"/v1/webhooks/{made['id']}"
    shown = api.get(path).json()
    assert shown == {name: value for name, value in made.items() if name != "secret"}
    assert api.get("/v1/webhooks").json()["data"] == [shown]
    changed = api("PATCH", path, json={"events": ["job.failed"], "name": None}).json()
    assert changed == {**shown, "events": ["job.failed"], "name": None}
    assert api("DELETE", path).status_code == 204
    assert api.get(path).status_code == 404
    assert api.get("/v1/webhooks").json()["data"] == []


def test_lists_are_paged(api: Api) -> None:
    ids = [make(api)["id"] for _ in range(3)]
    first = api.get("/v1/webhooks?limit=2").json()
    second = api.get("/v1/webhooks", params={"limit": 2, "cursor": first["next_cursor"]}).json()
    assert [hook["id"] for hook in first["data"] + second["data"]] == ids[::-1]
    assert (first["has_more"], second["has_more"]) == (True, False)


REFUSED_URLS = {
    "http://receiver.example/": "insecure_url",
    "https://127.0.0.1/": "blocked_address",
    "https://2130706433/": "blocked_address",
    "https://0x7f.1/": "blocked_address",
    "https://[::ffff:169.254.169.254]/": "blocked_address",
    "https://10.0.0.1:8443/x": "blocked_address",
    "https://localhost/": "blocked_address",
    "https://anything.localhost./": "blocked_address",
    "https://user:password@receiver.example/": "value_error",
    "https://receiver.example/#part": "value_error",
    "ftp://receiver.example/": "url_scheme",
    "https://": "url_parsing",
    f"https://receiver.example/{'x' * 2100}": "url_too_long",
}
REFUSED_WISHES: list[dict[str, Any]] = [
    {},
    {"url": URL, "events": []},
    {"url": URL, "events": ["job.exploded"]},
    {"url": URL, "events": ["webhook.test"]},
    {"url": URL, "events": ["job.failed", "job.failed"]},
    {"url": URL, "labels": {"no spaces": "x"}},
    {"url": URL, "secret": "mine"},
]


def test_an_address_where_nothing_may_go_is_refused_when_it_is_named(api: Api) -> None:
    path = f"/v1/webhooks/{make(api)['id']}"
    for url, code in REFUSED_URLS.items():
        for response in (api.post("/v1/webhooks", json={"url": url}), api("PATCH", path, json={"url": url})):
            assert response.status_code == 422, url
            (error,) = response.json()["errors"]
            assert (error["pointer"], error["code"]) == ("/url", code), url


def test_a_wish_that_makes_no_sense_is_refused(api: Api) -> None:
    for body in REFUSED_WISHES:
        assert api.post("/v1/webhooks", json=body).status_code == 422, body


def test_null_takes_nothing_away_that_a_webhook_needs(api: Api) -> None:
    path = f"/v1/webhooks/{make(api)['id']}"
    for field in ("url", "events", "labels", "enabled"):
        assert api("PATCH", path, json={field: None}).status_code == 422, field


def test_a_tenant_has_no_more_webhooks_than_its_jobs_can_look_at(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "MAX_WEBHOOKS", 2)
    make(api)
    make(api)
    response = api.post("/v1/webhooks", json={"url": URL})
    assert (response.status_code, response.json()["code"]) == (409, "too_many_webhooks")


def test_the_secret_is_nowhere_but_in_the_answer(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    made = make(api)
    rotated = api.post(f"/v1/webhooks/{made['id']}/rotate").json()
    with api.database.read() as session:
        row = session.get_one(Webhook, made["id"])
        stored = " ".join(str(getattr(row, column.key)) for column in Webhook.__table__.columns)
    seen = stored + caplog.text + api.get(f"/v1/webhooks/{made['id']}").text + api.get("/v1/webhooks").text
    for secret in (made["secret"], rotated["secret"]):
        assert secret.removeprefix("whsec_") not in seen


def test_a_rotation_keeps_the_old_secret_for_its_overlap(api: Api) -> None:
    made = make(api)
    path = f"/v1/webhooks/{made['id']}/rotate"
    rotated = api.post(path, json={"overlap_s": 60}).json()
    assert rotated["secret"] != made["secret"]
    until = datetime.fromisoformat(rotated["previous_secret_until"])
    assert timedelta(seconds=50) < until - datetime.now(UTC) <= timedelta(seconds=60)
    assert api.post(path).status_code == 200
    assert api.post(path, json={"overlap_s": -1}).status_code == 422


# --- what the tests of all routes (test_tenancy) do not see


def test_a_delivery_is_found_under_its_own_webhook_alone(api: Api) -> None:
    webhook, other = make(api)["id"], make(api)["id"]
    delivery = api.post(f"/v1/webhooks/{webhook}/test").json()["id"]
    assert api.get(f"/v1/webhooks/{webhook}/deliveries/{delivery}").status_code == 200
    assert api.get(f"/v1/webhooks/{other}/deliveries/{delivery}").status_code == 404
    assert api.post(f"/v1/webhooks/{other}/deliveries/{delivery}/redeliver").status_code == 404


def test_changes_of_webhooks_are_in_the_audit_log(api: Api, attempted: Callable[..., dict[str, Any]]) -> None:
    webhook = make(api)
    path = f"/v1/webhooks/{webhook['id']}"
    api("PATCH", path, json={"name": "ci"})
    api.post(f"{path}/rotate")
    delivery = api.post(f"{path}/test").json()["id"]
    attempted(webhook, delivery, status=200)
    api.post(f"{path}/deliveries/{delivery}/redeliver")
    api("DELETE", path)
    noted = [(entry["action"], entry["resource_id"]) for entry in api.get("/v1/audit").json()["data"]][::-1]
    assert noted == [
        ("webhook.created", webhook["id"]),
        ("webhook.changed", webhook["id"]),
        ("webhook.rotated", webhook["id"]),
        ("webhook.tested", webhook["id"]),
        ("webhook.redelivered", delivery),
        ("webhook.deleted", webhook["id"]),
    ]


# --- messages are written with what they tell of


def test_there_is_one_event_for_each_status() -> None:
    assert {WebhookEvent.of(status) for status in JobStatus} == set(WebhookEvent)


def test_every_change_of_status_writes_its_message(api: Api) -> None:
    webhook = make(api, events=ALL)
    job_id = api.add_job()
    fence = claim(api.database, job_id)
    with api.database.write() as session:
        outcomes.requeue(session, session.get_one(Job, job_id), fence, reason="test")
    fence = claim(api.database, job_id, "worker-2")
    with api.database.write() as session:
        outcomes.succeed(session, session.get_one(Job, job_id), fence, make_result(), [], [])
    assert types(api, webhook) == ["job.queued", "job.running", "job.queued", "job.running", "job.succeeded"]
    last = messages(api, webhook)[-1].model_dump(mode="json")["data"]
    job = api.get(f"/v1/jobs/{job_id}").json()
    assert {name: last[name] for name in ("job_id", "status", "verdict", "attempt", "version")} == {
        "job_id": job_id,
        **{name: job[name] for name in ("status", "verdict", "attempt", "version")},
    }
    assert last["links"]["job"] == f"/v1/jobs/{job_id}"


def test_cancelling_and_failing_are_told_too(api: Api) -> None:
    webhook = make(api, events=ALL)
    first, second = api.add_job(), api.add_job()
    fence = claim(api.database, first)
    with api.database.write() as session:
        cancel(session, api.tenant_id, first)
        cancel(session, api.tenant_id, second)
    with api.database.write() as session:
        outcomes.finish_cancel(session, session.get_one(Job, first), fence)
    third = api.add_job()
    fence = claim(api.database, third)
    with api.database.write() as session:
        error = JobError(code=JobErrorCode.OOM_HOST, message="too large")
        outcomes.fail(session, session.get_one(Job, third), fence, error)
    assert [kind for kind in types(api, webhook) if kind not in ("job.queued", "job.running")] == [
        *("job.cancelling", "job.cancelled", "job.cancelled", "job.failed")
    ]
    assert messages(api, webhook)[-1].model_dump(mode="json")["data"]["error_code"] == "oom_host"


def test_filters_say_who_is_told_what(api: Api) -> None:
    ends = make(api)
    nightly = make(api, events=["job.cancelled"], labels={"pipeline": "nightly", "team": "a"})
    off = make(api, events=ALL)
    api("PATCH", f"/v1/webhooks/{off['id']}", json={"enabled": False})
    stranger = api.another_tenant()
    foreign = make(stranger, events=ALL)
    labels = [{}, {"pipeline": "nightly"}, {"pipeline": "nightly", "team": "a", "more": "x"}]
    for each in labels:
        api.post(f"/v1/jobs/{api.add_job(labels=each)}/cancel")
    assert types(api, ends) == ["job.cancelled"] * 3
    assert types(api, nightly) == ["job.cancelled"]
    assert types(api, off) == []
    assert types(stranger, foreign) == []


def test_what_is_rolled_back_is_not_told(api: Api) -> None:
    webhook = make(api, events=ALL)
    job_id = api.add_job()

    def cancel_and_fail() -> None:
        with api.database.write() as session:
            cancel(session, api.tenant_id, job_id)
            transitions.hold(session, job_id, transitions.Fence("nobody", 1))

    with pytest.raises(transitions.StaleFenceError):
        cancel_and_fail()
    assert types(api, webhook) == ["job.queued"]


def test_a_message_is_thin_whatever_the_job(api: Api) -> None:
    webhook = make(api, events=["job.failed"])
    job_id = api.add_job(name="n" * 200, labels={f"label{i}": "ü" * 255 for i in range(32)})
    fence = claim(api.database, job_id)
    with api.database.write() as session:
        error = JobError(code=JobErrorCode.INTERNAL, message="x" * 100_000)
        outcomes.fail(session, session.get_one(Job, job_id), fence, error)
    with api.database.read() as session:
        body = session.scalars(select(WebhookDelivery.body).where(WebhookDelivery.webhook_id == webhook["id"])).one()
    assert len(body.encode()) < 1000
    assert set(json.loads(body)) == {"type", "timestamp", "data"}


def test_a_webhook_that_is_being_deleted_does_not_stand_in_the_way_of_a_job(api: Api) -> None:
    webhook = make(api, events=ALL)
    job_id = api.add_job()
    assert api("DELETE", f"/v1/webhooks/{webhook['id']}").status_code == 204
    assert api.post(f"/v1/jobs/{job_id}/cancel").json()["status"] == "cancelled"


# --- the log


@pytest.fixture
def attempted(api: Api) -> Callable[..., dict[str, Any]]:
    """Record the outcome of an attempt on a delivery, as a courier would."""

    def attempt(
        webhook: dict[str, Any], delivery_id: str, error: DeliveryErrorCode | None = None, **fields: Any
    ) -> Any:
        held(api.database, delivery_id)
        outcome = Outcome(now(), 12, error, **fields)
        with api.database.write() as session:
            assert record(session, Parcel(delivery_id, webhook["id"], "token", URL, "", ()), outcome)
        return api.get(f"/v1/webhooks/{webhook['id']}/deliveries/{delivery_id}").json()

    return attempt


def held(database: Database, delivery_id: str) -> None:
    with database.write() as session:
        session.execute(update(WebhookDelivery).where(WebhookDelivery.id == delivery_id).values(lease_owner="token"))


def test_the_log_shows_every_attempt(api: Api, attempted: Callable[..., dict[str, Any]]) -> None:
    webhook = make(api)
    base = f"/v1/webhooks/{webhook['id']}"
    response = api.post(f"{base}/test")
    assert response.status_code == 202
    sent = response.json()
    assert response.headers["Location"] == f"{base}/deliveries/{sent['id']}"
    assert (sent["type"], sent["status"], sent["attempts"]) == ("webhook.test", "pending", [])
    failed = attempted(webhook, sent["id"], DeliveryErrorCode.REFUSED, status=500, excerpt="boom")
    assert failed["status"] == "pending"
    assert failed["next_attempt_at"] > failed["attempts"][0]["started_at"]
    assert api.get(base).json()["failing_since"]
    taken = attempted(webhook, sent["id"], status=200, excerpt="thanks")
    assert (taken["status"], taken["next_attempt_at"]) == ("succeeded", None)
    shown = [{**attempt, "started_at": None} for attempt in taken["attempts"]]
    same = {"started_at": None, "duration_ms": 12}
    assert shown == [
        {"number": 1, "response_status": 500, "response_excerpt": "boom", "error": "refused", **same},
        {"number": 2, "response_status": 200, "response_excerpt": "thanks", "error": None, **same},
    ]
    assert api.get(base).json()["failing_since"] is None
    assert api.get(base).json()["last_success_at"]
    assert [each["id"] for each in api.get(f"{base}/deliveries?status=succeeded").json()["data"]] == [sent["id"]]
    assert api.get(f"{base}/deliveries?status=pending&status=failed").json()["data"] == []
    assert api.get(f"{base}/deliveries?status=lost").status_code == 422


def test_a_finished_message_can_be_sent_again_under_its_id(api: Api, attempted: Callable[..., dict[str, Any]]) -> None:
    webhook = make(api)
    sent = api.post(f"/v1/webhooks/{webhook['id']}/test").json()
    path = f"/v1/webhooks/{webhook['id']}/deliveries/{sent['id']}/redeliver"
    assert (api.post(path).status_code, api.post(path).json()["code"]) == (409, "delivery_pending")
    attempted(webhook, sent["id"], status=200)
    again = api.post(path)
    assert again.status_code == 202
    assert (again.json()["id"], again.json()["status"]) == (sent["id"], "pending")
    assert again.json()["next_attempt_at"]
    assert len(attempted(webhook, sent["id"], status=204)["attempts"]) == 2


def test_a_receiver_that_is_gone_is_disabled_at_once_and_says_so(
    api: Api, attempted: Callable[..., dict[str, Any]]
) -> None:
    webhook = make(api)
    base = f"/v1/webhooks/{webhook['id']}"
    sent = api.post(f"{base}/test").json()
    assert attempted(webhook, sent["id"], DeliveryErrorCode.GONE, status=410)["status"] == "failed"
    shown = api.get(base).json()
    assert (shown["enabled"], shown["disabled_reason"]) == (False, "gone")
    assert shown["disabled_at"]
    for path in (f"{base}/test", f"{base}/deliveries/{sent['id']}/redeliver"):
        response = api.post(path)
        assert (response.status_code, response.json()["code"]) == (409, "webhook_disabled")
    healed = api("PATCH", base, json={"enabled": True}).json()
    assert (healed["enabled"], healed["disabled_reason"], healed["failing_since"]) == (True, None, None)
    assert api.post(f"{base}/test").status_code == 202


def test_a_day_of_failures_gives_up_the_message_and_disables_the_receiver(
    api: Api, attempted: Callable[..., dict[str, Any]]
) -> None:
    webhook = make(api)
    sent = api.post(f"/v1/webhooks/{webhook['id']}/test").json()
    tries = 0
    while attempted(webhook, sent["id"], DeliveryErrorCode.TIMEOUT)["status"] == "pending":
        tries += 1
        assert tries < 30
        wait_until_next_attempt(api.database, sent["id"])
    assert 9 <= tries <= 15
    shown = api.get(f"/v1/webhooks/{webhook['id']}").json()
    assert (shown["enabled"], shown["disabled_reason"]) == (False, "failing")
    last = api.get(f"/v1/webhooks/{webhook['id']}/deliveries/{sent['id']}").json()
    assert (last["status"], last["next_attempt_at"]) == ("failed", None)


def wait_until_next_attempt(database: Database, delivery_id: str) -> None:
    """Move all that happened into the past, by as long as the next attempt is away."""
    with database.write() as session:
        row = session.get_one(WebhookDelivery, delivery_id)
        webhook = session.get_one(Webhook, row.webhook_id)
        assert row.next_attempt_at
        assert row.gives_up_at
        assert webhook.failing_since
        by = row.next_attempt_at - now()
        row.next_attempt_at -= by
        row.gives_up_at -= by
        webhook.failing_since -= by


def test_one_success_in_a_day_keeps_a_receiver_enabled(api: Api, attempted: Callable[..., dict[str, Any]]) -> None:
    webhook = make(api)
    bad, good = (api.post(f"/v1/webhooks/{webhook['id']}/test").json()["id"] for _ in range(2))
    attempted(webhook, bad, DeliveryErrorCode.REFUSED, status=500)
    with api.database.write() as session:
        session.get_one(WebhookDelivery, bad).gives_up_at = now()
        session.get_one(Webhook, webhook["id"]).failing_since = now() - timedelta(hours=23)
    attempted(webhook, good, status=200)
    assert attempted(webhook, bad, DeliveryErrorCode.REFUSED, status=500)["status"] == "failed"
    assert api.get(f"/v1/webhooks/{webhook['id']}").json()["enabled"] is True
