"""`nupes webhooks …`."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from nupes_client.cli import options as o

if TYPE_CHECKING:
    from nupes_client.schemas.webhooks import Delivery, Webhook, WebhookCreated

app = typer.Typer(help="Tell other systems what jobs do, by signed messages.", no_args_is_help=True)


class Event(StrEnum):
    """What a receiver can be told (`nupes_client.schemas.webhooks.WebhookEvent`, which help must not load)."""

    JOB_QUEUED = "job.queued"
    JOB_RUNNING = "job.running"
    JOB_CANCELLING = "job.cancelling"
    JOB_SUCCEEDED = "job.succeeded"
    JOB_FAILED = "job.failed"
    JOB_CANCELLED = "job.cancelled"


class Status(StrEnum):
    """Where a message stands."""

    PENDING = "pending"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


WebhookId = Annotated[str, typer.Argument(metavar="WEBHOOK", help="A webhook id (whk_…).", show_default=False)]
DeliveryId = Annotated[str, typer.Argument(metavar="DELIVERY", help="A delivery id (whd_…).", show_default=False)]
Off = Annotated[bool, typer.Option("--off", help="Switch it off instead.")]
Overlap = Annotated[
    int | None,
    typer.Option("--overlap", min=0, help="Seconds in which the old secret signs too.", show_default="86400"),
]


def list_webhooks(limit: o.Limit = 20, json: o.Json = False) -> None:
    """List webhooks, newest first, and how they fare."""
    from nupes_client.cli import output
    from nupes_client.client import Client

    with Client() as client:
        found = list(client.webhooks.list(limit=limit))
    if json:
        output.print_json(found)
        return
    output.print_table(
        ("webhook", "name", "url", "events", "state"),
        [(hook.id, hook.name or "", hook.url, " ".join(hook.events), _state(hook)) for hook in found],
        empty="no webhooks yet; nupes webhooks create URL adds one",
    )


def create(
    url: Annotated[str, typer.Argument(metavar="URL", help="Where messages go, https.", show_default=False)],
    event: Annotated[
        list[Event] | None,
        typer.Option("--event", help="What of; repeatable.", show_default="how jobs end"),
    ] = None,
    label: o.LabelFilter = None,
    name: Annotated[str | None, typer.Option("--name", help="A name, for people.")] = None,
    json: o.Json = False,
) -> None:
    """Add a webhook and print its signing secret, this once."""
    from nupes_client.cli.wish import pairs
    from nupes_client.client import Client
    from nupes_client.schemas.webhooks import WebhookEvent

    events = [WebhookEvent(each.value) for each in event or ()]
    with Client() as client:
        made = client.webhooks.create(url, events=events, labels=pairs("--label", label or ()), name=name)
    _show_secret(made, json)


def rotate(webhook_id: WebhookId, overlap: Overlap = None, json: o.Json = False) -> None:
    """Replace the signing secret and print the new one, this once."""
    from datetime import timedelta

    from nupes_client.client import Client

    with Client() as client:
        made = client.webhooks.rotate(webhook_id, None if overlap is None else timedelta(seconds=overlap))
    _show_secret(made, json)


def enable(webhook_id: WebhookId, off: Off = False, json: o.Json = False) -> None:
    """Switch a webhook on again, whoever disabled it."""
    from nupes_client.cli import output
    from nupes_client.client import Client

    with Client() as client:
        found = client.webhooks.set_enabled(webhook_id, not off)
    if json:
        output.print_json(found)
    else:
        output.print_line(f"{found.id} {_state(found)}")


def delete(webhook_id: WebhookId) -> None:
    """Delete a webhook and the log of its deliveries."""
    from nupes_client.cli import output
    from nupes_client.client import Client

    with Client() as client:
        client.webhooks.delete(webhook_id)
    output.note(f"{webhook_id} is deleted")


def send_test(webhook_id: WebhookId, json: o.Json = False) -> None:
    """Send a test message; `nupes webhooks deliveries` shows how it went."""
    from nupes_client.client import Client

    with Client() as client:
        _show_queued(client.webhooks.test(webhook_id), json)


def redeliver(webhook_id: WebhookId, delivery_id: DeliveryId, json: o.Json = False) -> None:
    """Send a message again, under the same message id."""
    from nupes_client.client import Client

    with Client() as client:
        _show_queued(client.webhooks.redeliver(webhook_id, delivery_id), json)


def deliveries(
    webhook_id: WebhookId,
    status: Annotated[list[Status] | None, typer.Option("--status", help="Only these; repeatable.")] = None,
    limit: o.Limit = 20,
    json: o.Json = False,
) -> None:
    """List what was sent, newest first, and what came of it."""
    from nupes_client.cli import output
    from nupes_client.client import Client
    from nupes_client.schemas.webhooks import DeliveryStatus

    statuses = [DeliveryStatus(each.value) for each in status or ()]
    with Client() as client:
        found = list(client.webhooks.deliveries(webhook_id, statuses=statuses, limit=limit))
    if json:
        output.print_json(found)
        return
    output.print_table(
        ("delivery", "type", "job", "status", "attempts", "last answer", "next attempt (UTC)"),
        [
            (each.id, str(each.type), each.job_id, each.status.value, len(each.attempts), _last(each), _when(each))
            for each in found
        ],
        numbers=("attempts",),
        empty="nothing was sent yet",
    )


def _show_secret(made: WebhookCreated, as_json: bool) -> None:
    from nupes_client.cli import output

    output.note(f"webhook {made.id}; the secret is shown this once")
    if as_json:
        output.print_json(made)
    else:
        output.print_line(made.secret)


def _show_queued(delivery: Delivery, as_json: bool) -> None:
    from nupes_client.cli import output

    if as_json:
        output.print_json(delivery)
    else:
        output.print_line(delivery.id)


def _state(webhook: Webhook) -> str:
    if webhook.disabled_reason is not None:
        return f"disabled: {webhook.disabled_reason.value}"
    return "failing" if webhook.failing_since else "enabled"


def _last(delivery: Delivery) -> str | None:
    if not delivery.attempts:
        return None
    last = delivery.attempts[-1]
    words = [str(last.response_status or ""), last.error.value if last.error else "", f"{last.duration_ms} ms"]
    return " ".join(word for word in words if word)


def _when(delivery: Delivery) -> str | None:
    moment: datetime | None = delivery.next_attempt_at
    return f"{moment:%Y-%m-%d %H:%M:%S}" if moment else None


COMMANDS: dict[str, Callable[..., None]] = {
    "list": list_webhooks,
    "create": create,
    "enable": enable,
    "rotate": rotate,
    "test": send_test,
    "deliveries": deliveries,
    "redeliver": redeliver,
    "delete": delete,
}
for _name, _command in COMMANDS.items():
    app.command(_name)(_command)
