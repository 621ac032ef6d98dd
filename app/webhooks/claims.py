"""Taking messages for sending, under a lease: no two couriers send one at the same time, and none is stuck."""

from __future__ import annotations

import secrets
from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from app.core.clock import now
from app.db.session import Database
from app.db.tables import Webhook, WebhookDelivery
from app.webhooks import repository
from app.webhooks.sending import Parcel

LEASE = timedelta(seconds=60)
"""More than a request can take (`webhook_timeout_s`). Whoever dies meanwhile leaves the message to others after it."""
AT_ONCE = {False: 4, True: 1}
"""Requests to one receiver at the same time, all couriers together; one that fails gets one."""


def claim(database: Database, *, failing: bool, limit: int) -> list[Parcel]:
    """Take up to `limit` messages that are due.

    Args:
        database: where they are.
        failing: of receivers whose last attempt failed, or of all others.
        limit: how many at most.
    """
    moment, each = now(), AT_ONCE[failing]
    with database.read() as session:
        candidates = repository.due(session, moment, failing=failing, each=each, limit=limit)
    parcels = []
    for webhook_id, delivery_ids in candidates.items():
        with database.write() as session:
            parcels += _take(session, webhook_id, delivery_ids, each)
    return parcels


def _take(session: Session, webhook_id: str, delivery_ids: list[str], each: int) -> list[Parcel]:
    moment = now()
    webhook = repository.open_webhook(session, webhook_id, moment)
    if webhook is None:
        return []
    free = max(0, each - repository.flying(session, webhook_id, moment))
    taken = []
    for delivery_id in delivery_ids[:free]:
        token = secrets.token_hex(16)
        row = repository.take(session, delivery_id, token, moment, moment + LEASE)
        if row is not None:
            taken.append(_parcel(webhook, row, token, moment))
    return taken


def _parcel(webhook: Webhook, row: WebhookDelivery, token: str, moment: datetime) -> Parcel:
    sealed = [webhook.secret]
    if webhook.previous_secret and webhook.previous_secret_until and webhook.previous_secret_until > moment:
        sealed.append(webhook.previous_secret)
    return Parcel(row.id, webhook.id, token, webhook.url, row.body, tuple(sealed))
