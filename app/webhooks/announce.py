"""Writing messages: in the very transaction of what they tell of, so that no message is lost and none is untrue."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy.orm import Session

from app.core.clock import now
from app.db.tables import Job, Webhook, WebhookDelivery
from app.webhooks import repository
from nupes_client.schemas.jobs import JobStatus
from nupes_client.schemas.webhooks import (
    TEST_TYPE,
    JobMessageData,
    MessageLinks,
    TestMessageData,
    WebhookEvent,
    WebhookMessage,
)


def announce(session: Session, *jobs: Job) -> None:
    """Queue a message about the status that each job has just reached for every webhook that asked for it."""
    hooks = {tenant_id: repository.listeners(session, tenant_id) for tenant_id in {job.tenant_id for job in jobs}}
    for job in jobs:
        _announce(session, job, hooks[job.tenant_id])


def _announce(session: Session, job: Job, hooks: Sequence[Webhook]) -> None:
    event = WebhookEvent.of(JobStatus(job.status))
    wanting = [hook for hook in hooks if _wants(hook, event, job)]
    if not wanting:
        return
    body = WebhookMessage(type=event, timestamp=now(), data=_data(job)).model_dump_json()
    for hook in wanting:
        session.add(_delivery(hook, event.value, body, job.id))
    session.flush()


def announce_test(session: Session, webhook: Webhook) -> WebhookDelivery:
    """Queue a message that says nothing but that it arrived."""
    message = WebhookMessage(type=TEST_TYPE, timestamp=now(), data=TestMessageData(webhook_id=webhook.id))
    row = _delivery(webhook, TEST_TYPE, message.model_dump_json(), None)
    session.add(row)
    session.flush()
    return row


def _wants(webhook: Webhook, event: WebhookEvent, job: Job) -> bool:
    return event.value in webhook.events and webhook.labels.items() <= job.labels.items()


def _delivery(webhook: Webhook, kind: str, body: str, job_id: str | None) -> WebhookDelivery:
    return WebhookDelivery(tenant_id=webhook.tenant_id, webhook_id=webhook.id, type=kind, body=body, job_id=job_id)


def _data(job: Job) -> JobMessageData:
    base = f"/v1/jobs/{job.id}"
    return JobMessageData.model_validate(
        {
            "job_id": job.id,
            "status": job.status,
            "verdict": job.verdict,
            "attempt": job.attempt,
            "version": job.version,
            "error_code": job.error["code"] if job.error else None,
            "links": MessageLinks(job=base, events=f"{base}/events", artifacts=f"{base}/artifacts"),
        }
    )
