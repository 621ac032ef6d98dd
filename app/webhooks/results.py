"""What an attempt means: for the message (taken, again later, given up) and for its receiver (failing, disabled)."""

from __future__ import annotations

import random
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from sqlalchemy import or_
from sqlalchemy.orm import Session

from app.core.clock import now
from app.db.session import Database
from app.db.tables import Webhook, WebhookAttempt, WebhookDelivery
from app.webhooks import repository
from nupes_client.schemas.webhooks import DeliveryErrorCode, DeliveryStatus, DisabledReason

if TYPE_CHECKING:  # workers alone send; the API is spared httpcore and what it brings
    from app.webhooks.sending import Outcome, Parcel

RETRY_FOR = timedelta(days=1)
"""A message is tried again for so long; a receiver that takes nothing for so long is disabled."""
FIRST_DELAY = timedelta(seconds=10)
GROWTH = 3
LONGEST_DELAY = timedelta(hours=4)
JITTER = (0.75, 1.25)
LOG_KEPT = timedelta(days=30)


def record(session: Session, parcel: Parcel, outcome: Outcome) -> bool:
    """Write down an attempt and what follows from it, in the caller's transaction.

    Returns False, and writes nothing, when the lease was lost meanwhile: then another courier sent the message again,
    under the same id.
    """
    held = repository.held(session, parcel.webhook_id, parcel.delivery_id, parcel.token)
    if held is None:
        return False
    webhook, row = held
    row.attempts += 1
    row.tries += 1
    row.lease_owner = row.lease_until = None
    session.add(_attempt(row, outcome))
    if outcome.error is None:
        _succeed(webhook, row)
    else:
        _fail(webhook, row, outcome)
    return True


def disable(webhook: Webhook, reason: DisabledReason) -> None:
    """Send nothing any more; what waits is kept for a day, in case the receiver is enabled again."""
    webhook.enabled = False
    webhook.disabled_reason = reason.value
    webhook.disabled_at = now()


def enable(webhook: Webhook) -> None:
    """Send again, as if nothing had failed."""
    webhook.enabled = True
    webhook.disabled_reason = webhook.disabled_at = None
    webhook.failing_since = webhook.paused_until = None


def delay(tries: int) -> timedelta:
    """How long to wait after so many failed tries: 10 s, 30 s, 90 s … 4 h, each with jitter."""
    grown: timedelta = FIRST_DELAY * GROWTH ** min(tries - 1, 20)
    return min(grown, LONGEST_DELAY) * random.uniform(*JITTER)  # noqa: S311


def tidy(database: Database) -> None:
    """Give up what waits for receivers that stay disabled, and forget old deliveries. Safe to run in every worker."""
    moment = now()
    stranded, outdated = repository.stranded(moment - RETRY_FOR), repository.outdated(moment - LOG_KEPT)
    with database.read() as session:
        if not repository.any_delivery(session, or_(stranded, outdated)):
            return
    with database.write() as session:
        repository.give_up(session, stranded, moment)
        repository.forget(session, outdated)


def _attempt(row: WebhookDelivery, outcome: Outcome) -> WebhookAttempt:
    return WebhookAttempt(
        delivery_id=row.id,
        number=row.attempts,
        started_at=outcome.started_at,
        duration_ms=outcome.duration_ms,
        response_status=outcome.status,
        response_excerpt=outcome.excerpt,
        error=outcome.error.value if outcome.error else None,
    )


def _succeed(webhook: Webhook, row: WebhookDelivery) -> None:
    webhook.last_success_at = now()
    webhook.failing_since = webhook.paused_until = None
    _finish(row, DeliveryStatus.SUCCEEDED)


def _fail(webhook: Webhook, row: WebhookDelivery, outcome: Outcome) -> None:
    moment = now()
    webhook.failing_since = webhook.failing_since or moment
    row.gives_up_at = row.gives_up_at or moment + RETRY_FOR
    if outcome.retry_after is not None:
        webhook.paused_until = moment + outcome.retry_after
    gone = outcome.error is DeliveryErrorCode.GONE
    if gone or moment >= row.gives_up_at:
        _finish(row, DeliveryStatus.FAILED)
    else:
        row.next_attempt_at = _next_attempt(moment, row.tries, outcome.retry_after, row.gives_up_at)
    if webhook.enabled and (gone or moment - webhook.failing_since >= RETRY_FOR):
        disable(webhook, DisabledReason.GONE if gone else DisabledReason.FAILING)


def _next_attempt(moment: datetime, tries: int, retry_after: timedelta | None, gives_up_at: datetime) -> datetime:
    """The last attempt falls on the moment of giving up."""
    return min(moment + max(delay(tries), retry_after or timedelta(0)), gives_up_at)


def _finish(row: WebhookDelivery, status: DeliveryStatus) -> None:
    row.status = status.value
    row.next_attempt_at = None
    row.finished_at = now()
