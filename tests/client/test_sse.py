"""Event streams, whole and broken."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from nupes_client.client import Client
from nupes_client.errors import ServiceUnreachableError
from nupes_client.sse import Message, messages
from tests.client.raw_server import answer, raw_server


def event(seq: int, kind: str = "log", **data: object) -> bytes:
    body = {"seq": seq, "type": kind, "data": data, "created_at": datetime.now(UTC).isoformat()}
    return f"id: {seq}\nevent: {kind}\ndata: {json.dumps(body)}\n\n".encode()


def stream(*parts: bytes, announced: int | None = None) -> bytes:
    return answer("200 OK", b"".join(parts), announced, Content_Type="text/event-stream; charset=utf-8")


def test_lines_become_messages_and_comments_heartbeats() -> None:
    lines = ["id: 1", "event: log", "data: a", "data: b", "", ": heartbeat", "", "data:c", ""]
    assert list(messages(lines)) == [
        Message("1", "log", "a\nb"),
        Message("1", "", ""),
        Message("1", "message", "c"),
    ]


def test_an_event_cut_in_the_middle_is_dropped() -> None:
    assert list(messages(["id: 1", "data: half"])) == []


def test_a_broken_stream_goes_on_behind_the_last_event() -> None:
    first = stream(event(1), event(2), b"id: 3\ndata: {", announced=100_000)
    second = stream(
        event(2), event(3), b": heartbeat\n\n", event(4, "status", **{"from": "running", "to": "succeeded"})
    )
    with raw_server(first, second) as server:
        client = Client(server.url, "key", backoff_s=0.01)
        assert [item.seq for item in client.jobs.events("job_1")] == [1, 2, 3, 4]
        assert "last-event-id: 2" in server.requests[1].lower()


def test_a_stream_that_brings_nothing_again_and_again_is_given_up() -> None:
    with raw_server(stream()) as server, pytest.raises(ServiceUnreachableError):
        list(Client(server.url, "key", backoff_s=0.01).jobs.events("job_1"))


def test_messages_of_a_kind_from_the_future_are_skipped() -> None:
    end = event(2, "status", **{"from": "running", "to": "cancelled"})
    with raw_server(stream(b"event: news\ndata: {}\n\n", event(1), end)) as server:
        assert [item.seq for item in Client(server.url, "key").jobs.events("job_1")] == [1, 2]
