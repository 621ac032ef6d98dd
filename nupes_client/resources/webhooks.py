"""Webhooks and what became of their messages."""

from __future__ import annotations

import builtins
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

from nupes_client.resources.paging import every
from nupes_client.schemas.webhooks import Delivery, DeliveryStatus, Webhook, WebhookCreated, WebhookEvent
from nupes_client.transport import Transport

PATH = "/v1/webhooks"


class Webhooks:
    """`/v1/webhooks`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(
        self,
        url: str,
        *,
        events: Sequence[WebhookEvent] = (),
        labels: Mapping[str, str] | None = None,
        name: str | None = None,
    ) -> WebhookCreated:
        """Ask to be told of jobs; the signing secret is in this answer and never shown again.

        Args:
            url: the receiver.
            events: what of; by default how jobs end.
            labels: only of jobs that have all these.
            name: for people.
        """
        body: dict[str, Any] = {"url": url, "name": name, "labels": dict(labels or {})}
        if events:
            body["events"] = [event.value for event in events]
        return WebhookCreated.model_validate_json(self._transport.request("POST", PATH, json=body).content)

    def get(self, webhook_id: str) -> Webhook:
        """Return one webhook."""
        return Webhook.model_validate_json(self._transport.request("GET", f"{PATH}/{webhook_id}").content)

    def list(self, *, limit: int | None = None) -> Iterator[Webhook]:
        """Yield the webhooks, newest first."""
        return every(self._transport, PATH, Webhook, limit=limit)

    def set_enabled(self, webhook_id: str, enabled: bool) -> Webhook:
        """Switch a webhook on or off; on again also when the service had disabled it."""
        response = self._transport.request("PATCH", f"{PATH}/{webhook_id}", json={"enabled": enabled}, repeatable=True)
        return Webhook.model_validate_json(response.content)

    def delete(self, webhook_id: str) -> None:
        """Delete a webhook and the log of its deliveries."""
        self._transport.request("DELETE", f"{PATH}/{webhook_id}")

    def rotate(self, webhook_id: str, overlap: timedelta | None = None) -> WebhookCreated:
        """Replace the secret; for the time of the overlap (a day by default) both sign."""
        body = {} if overlap is None else {"overlap_s": int(overlap.total_seconds())}
        response = self._transport.request("POST", f"{PATH}/{webhook_id}/rotate", json=body)
        return WebhookCreated.model_validate_json(response.content)

    def test(self, webhook_id: str) -> Delivery:
        """Have a test message sent."""
        response = self._transport.request("POST", f"{PATH}/{webhook_id}/test")
        return Delivery.model_validate_json(response.content)

    def deliveries(
        self, webhook_id: str, *, statuses: Sequence[DeliveryStatus] = (), limit: int | None = None
    ) -> Iterator[Delivery]:
        """Yield what was sent, newest first."""
        params: dict[str, builtins.list[str]] = {"status": [status.value for status in statuses]}
        return every(self._transport, f"{PATH}/{webhook_id}/deliveries", Delivery, params=params, limit=limit)

    def delivery(self, webhook_id: str, delivery_id: str) -> Delivery:
        """Return one delivery."""
        response = self._transport.request("GET", f"{PATH}/{webhook_id}/deliveries/{delivery_id}")
        return Delivery.model_validate_json(response.content)

    def redeliver(self, webhook_id: str, delivery_id: str) -> Delivery:
        """Have a message sent again, under its old message id."""
        response = self._transport.request("POST", f"{PATH}/{webhook_id}/deliveries/{delivery_id}/redeliver")
        return Delivery.model_validate_json(response.content)
