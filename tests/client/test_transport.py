"""What the client does when the network, a proxy or the service misbehaves."""

from __future__ import annotations

import socket

import pytest

from nupes_client.client import Client
from nupes_client.credentials import Credentials
from nupes_client.errors import (
    AuthenticationError,
    ConfigurationError,
    InvalidRequestError,
    RateLimitedError,
    ServerError,
    ServiceUnreachableError,
)
from nupes_client.transport import Transport
from tests.client.raw_server import answer, json_answer, raw_server

PROBLEM = {
    "type": "about:blank",
    "title": "Unprocessable",
    "status": 422,
    "detail": "/weights/bits: too many",
    "instance": "/v1/jobs",
    "code": "invalid",
    "request_id": "req_1",
    "errors": [{"pointer": "/weights/bits", "code": "less_than_equal", "message": "at most 8"}],
}


def transport(url: str, **options: float) -> Transport:
    return Transport(Credentials(url, "nupes_key"), backoff_s=0.01, **options)  # type: ignore[arg-type]


def test_a_get_is_repeated_until_the_gateway_recovers() -> None:
    with raw_server(answer("503 Service Unavailable"), answer("502 Bad Gateway"), b"", json_answer({"a": 1})) as server:
        assert transport(server.url).request("GET", "/x").json() == {"a": 1}
        assert len(server.requests) == 4


def test_a_plain_post_whose_answer_was_lost_is_not_repeated() -> None:
    with raw_server(b"", json_answer({})) as server:
        with pytest.raises(ServiceUnreachableError, match="no answer"):
            transport(server.url).request("POST", "/x", json={})
        assert len(server.requests) == 1


def test_a_plain_post_that_was_not_acted_upon_is_repeated() -> None:
    with raw_server(answer("503 Service Unavailable", Retry_After="0"), json_answer({}, "201 Created")) as server:
        assert transport(server.url).request("POST", "/x", json={}).status_code == 201


def test_a_post_with_an_idempotency_key_is_repeated_with_the_same_key() -> None:
    with raw_server(b"", json_answer({}, "202 Accepted")) as server:
        transport(server.url).request("POST", "/x", json={}, headers={"Idempotency-Key": "k1"})
        assert ["k1" in request for request in server.requests] == [True, True]


def test_an_equal_request_still_at_work_is_waited_for() -> None:
    busy = {**PROBLEM, "status": 409, "code": "idempotency_key_in_use", "retryable": True, "errors": None}
    with raw_server(json_answer(busy, "409 Conflict"), json_answer({"id": 1})) as server:
        response = transport(server.url).request("POST", "/x", json={}, headers={"Idempotency-Key": "k1"})
        assert response.json() == {"id": 1}


def test_a_refusal_is_not_repeated_and_says_what_was_wrong() -> None:
    with raw_server(json_answer(PROBLEM, "422 Unprocessable Content")) as server:
        with pytest.raises(InvalidRequestError) as caught:
            transport(server.url).request("GET", "/x")
        assert len(server.requests) == 1
    assert caught.value.code == "invalid"
    assert caught.value.request_id == "req_1"
    assert "/weights/bits: at most 8" in str(caught.value)


def test_a_limit_that_ends_tomorrow_is_told_at_once() -> None:
    refused = json_answer({**PROBLEM, "status": 429}, "429 Too Many Requests", Retry_After="80000")
    with raw_server(refused) as server:
        with pytest.raises(RateLimitedError):
            transport(server.url).request("GET", "/x")
        assert len(server.requests) == 1


def test_a_401_tells_where_keys_come_from() -> None:
    with (
        raw_server(json_answer({**PROBLEM, "status": 401}, "401 Unauthorized")) as server,
        pytest.raises(AuthenticationError) as caught,
    ):
        transport(server.url).request("GET", "/x")
    assert caught.value.hint is not None
    assert "NUPES_API_KEY" in caught.value.hint


def test_a_page_of_a_proxy_is_no_crash() -> None:
    with (
        raw_server(answer("500 Internal Server Error", b"<html>", Content_Type="text/html")) as server,
        pytest.raises(ServerError, match="500"),
    ):
        transport(server.url).request("GET", "/x")


def test_gateway_errors_that_stay_come_out_in_the_end() -> None:
    with raw_server(answer("504 Gateway Timeout")) as server:
        with pytest.raises(ServerError):
            transport(server.url, attempts=3).request("GET", "/x")
        assert len(server.requests) == 3


def test_no_service_at_all_is_said_in_plain_words() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(ServiceUnreachableError) as caught:
        transport(f"http://127.0.0.1:{port}", attempts=2).request("GET", "/x")
    assert "nupes up" in str(caught.value.hint)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", "http://"])
def test_an_address_that_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="NUPES_URL"):
        Client(url, "key")


def test_a_proxy_from_the_environment_does_not_stand_before_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with raw_server(json_answer({"a": 1})) as server:
        assert transport(server.url).request("GET", "/x").json() == {"a": 1}
