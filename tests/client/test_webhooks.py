"""`nupes webhooks …` against the real service."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest

from app.core.clock import now
from app.db.tables import Webhook, WebhookDelivery
from app.webhooks.results import disable
from nupes_client.cli.application import run
from nupes_client.cli.webhooks import Event, Status
from nupes_client.client import Client
from nupes_client.errors import ApiError
from nupes_client.schemas.webhooks import DeliveryStatus, DisabledReason, WebhookEvent
from tests.client.conftest import RunningService

URL = "https://receiver.example/hook"
pytestmark = pytest.mark.usefixtures("as_user")


def nupes(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """What the command prints as JSON."""
    assert run(["webhooks", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_command_line_knows_every_event_and_status() -> None:
    assert [event.value for event in Event] == [event.value for event in WebhookEvent]
    assert [status.value for status in Status] == [status.value for status in DeliveryStatus]


def test_a_webhook_is_made_with_filters_and_its_secret_is_printed_alone(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--event", "job.failed", "--label", "pipeline=nightly", "--name", "ci"]
    assert run(["webhooks", "create", URL, *options]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("whsec_")
    assert len(printed.out.splitlines()) == 1
    (hook,) = client.webhooks.list()
    assert hook.id in printed.err
    assert (hook.url, hook.events, hook.labels, hook.name) == (URL, ["job.failed"], {"pipeline": "nightly"}, "ci")
    assert run(["webhooks", "list"]) == 0
    listed = capsys.readouterr().out
    assert all(word in listed for word in (hook.id, URL, "enabled"))


def test_a_test_message_is_listed_and_can_be_sent_again(
    client: Client, service: RunningService, capsys: pytest.CaptureFixture[str]
) -> None:
    hook = client.webhooks.create(URL)
    assert hook.events == [WebhookEvent.JOB_SUCCEEDED, WebhookEvent.JOB_FAILED, WebhookEvent.JOB_CANCELLED]
    sent = nupes(capsys, "test", hook.id)
    assert run(["webhooks", "deliveries", hook.id, "--status", "pending"]) == 0
    assert sent["id"] in capsys.readouterr().out
    assert nupes(capsys, "deliveries", hook.id, "--status", "failed") == []
    assert run(["webhooks", "redeliver", hook.id, sent["id"]]) == 6
    assert "still being delivered" in capsys.readouterr().err
    with service.database.write() as session:
        session.get_one(WebhookDelivery, sent["id"]).status = DeliveryStatus.FAILED.value
    assert nupes(capsys, "redeliver", hook.id, sent["id"])["status"] == "pending"
    assert client.webhooks.delivery(hook.id, sent["id"]).status is DeliveryStatus.PENDING


def test_a_webhook_that_the_service_disabled_says_why_and_is_enabled_again(
    client: Client, service: RunningService, capsys: pytest.CaptureFixture[str]
) -> None:
    hook = client.webhooks.create(URL)
    with service.database.write() as session:
        disable(session.get_one(Webhook, hook.id), DisabledReason.FAILING)
    assert run(["webhooks", "list"]) == 0
    assert "disabled: failing" in capsys.readouterr().out
    assert nupes(capsys, "enable", hook.id)["enabled"] is True
    assert nupes(capsys, "enable", hook.id, "--off")["disabled_reason"] == "user"


def test_a_secret_is_rotated_and_a_webhook_deleted(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    hook = client.webhooks.create(URL)
    rotated = nupes(capsys, "rotate", hook.id, "--overlap", "60")
    assert rotated["secret"] != hook.secret
    until = client.webhooks.get(hook.id).previous_secret_until
    assert until
    assert until - now() <= timedelta(seconds=60)
    assert run(["webhooks", "delete", hook.id]) == 0
    with pytest.raises(ApiError, match="there is no webhook"):
        client.webhooks.get(hook.id)


@pytest.mark.parametrize(
    "arguments",
    [
        ["create", "http://receiver.example/"],
        ["create", URL, "--event", "job.exploded"],
        ["create", URL, "--label", "nothing"],
        ["test", "whk_unknown"],
        ["no-such-command"],
    ],
)
def test_wrong_usage_exits_6_with_words_on_stderr(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["webhooks", *arguments]) == 6
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.strip()
