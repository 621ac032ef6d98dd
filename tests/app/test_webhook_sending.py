"""One request to a receiver: signatures, where it may go, and what bad receivers can not do."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator
from ipaddress import ip_network

import pytest
import trustme
from standardwebhooks import WebhookVerificationError

from app.webhooks import sending
from app.webhooks.addresses import AddressPolicy
from app.webhooks.network import BlockedAddressError, Deadline, GuardedBackend, UnknownHostError
from app.webhooks.secrets import SecretBox, UnreadableSecretError
from app.webhooks.sending import Outcome, Parcel, Sender
from nupes_client.schemas.webhooks import DeliveryErrorCode as Code
from tests.app import receivers
from tests.app.receivers import Behave, Receiver, receiver
from tests.servers import free_port

BOX = SecretBox(b"pepper")
LOOPBACK = AddressPolicy([ip_network("127.0.0.0/8")])
BODY = '{"type":"webhook.test","timestamp":"2026-01-01T00:00:00Z","data":{}}'


@pytest.fixture(autouse=True)
def _proxies_of_the_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
        monkeypatch.setenv(name.upper(), "http://127.0.0.1:1")


@pytest.fixture
def sealed() -> tuple[str, str]:
    return BOX.make()


def parcel(url: str, *secrets: str) -> Parcel:
    return Parcel("whd_1", "whk_1", "token", url, BODY, secrets or (BOX.make()[1],))


def send(url: str, policy: AddressPolicy = LOOPBACK, timeout_s: float = 10.0) -> Outcome:
    return Sender(BOX, policy, timeout_s).send(parcel(url))


@pytest.fixture
def well() -> Iterator[Receiver]:
    with receiver() as running:
        yield running


def test_a_message_is_verified_by_the_official_library(well: Receiver, sealed: tuple[str, str]) -> None:
    secret, stored = sealed
    outcome = Sender(BOX, LOOPBACK, 10).send(parcel(well.url, stored))
    assert (outcome.error, outcome.status, outcome.excerpt) == (None, 200, "thanks")
    (got,) = well.got
    assert got.verified_by(secret)["type"] == "webhook.test"
    assert got.message_id == "whd_1"
    assert got.headers["content-type"] == "application/json"
    with pytest.raises(WebhookVerificationError):
        got.verified_by(BOX.make()[0])


def test_during_a_rotation_both_secrets_verify(well: Receiver) -> None:
    new, old = BOX.make(), BOX.make()
    Sender(BOX, LOOPBACK, 10).send(parcel(well.url, new[1], old[1]))
    assert well.got[0].verified_by(new[0]) == well.got[0].verified_by(old[0])


def test_a_secret_is_stored_unreadable_and_opens_under_its_own_key_alone(sealed: tuple[str, str]) -> None:
    secret, stored = sealed
    assert secret.removeprefix("whsec_") not in stored
    assert len(BOX.key(stored)) == 32
    with pytest.raises(UnreadableSecretError, match="NUPES_SECRET_KEY"):
        SecretBox(b"another pepper").key(stored)


@pytest.mark.parametrize(
    ("behave", "code", "status"),
    [
        (receivers.answering(204), None, 204),
        (receivers.answering(500, b"boom"), Code.REFUSED, 500),
        (receivers.answering(410), Code.GONE, 410),
        (receivers.garbling, Code.BROKEN_ANSWER, None),
        (receivers.pouring, None, 200),
    ],
    ids=["204", "500", "410", "garbage", "giant body"],
)
def test_every_answer_has_its_outcome(behave: Behave, code: Code | None, status: int | None) -> None:
    with receiver(behave) as running:
        outcome = send(running.url)
    assert (outcome.error, outcome.status) == (code, status)
    assert len(outcome.excerpt or "") <= sending.EXCERPT_BYTES


def test_a_redirect_is_not_followed(well: Receiver) -> None:
    with receiver(receivers.answering(307, Location=well.url)) as elsewhere:
        outcome = send(elsewhere.url)
    assert (outcome.error, outcome.status) == (Code.REDIRECT, 307)
    assert well.got == []


@pytest.mark.parametrize("behave", [receivers.hanging, receivers.dripping_head], ids=["hangs", "drips"])
def test_no_receiver_holds_a_request_longer_than_the_limit(behave: Behave) -> None:
    with receiver(behave) as running:
        began = time.monotonic()
        outcome = send(running.url, timeout_s=0.5)
        assert time.monotonic() - began < 5
    assert outcome.error is Code.TIMEOUT
    assert outcome.duration_ms >= 400


def test_a_dripping_body_is_cut_and_the_message_counts_as_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "BODY_S", 0.3)
    with receiver(receivers.dripping_body) as running:
        outcome = send(running.url, timeout_s=30)
    assert (outcome.error, outcome.status) == (None, 200)
    assert outcome.duration_ms < 5000


def test_what_no_database_can_hold_is_not_in_the_excerpt() -> None:
    with receiver(receivers.answering(200, b"a\x00b\xff\n\x1b[31mc")) as running:
        assert send(running.url).excerpt == "a\ufffdb\ufffd\n\ufffd[31mc"


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("120", 120), ("0", 0), ("99999999", 86400), ("Wed, 21 Oct 2015 07:28:00 GMT", 0), ("soon", None), ("-1", None)],
)
def test_retry_after_is_read_in_both_forms(header: str, seconds: int | None) -> None:
    with receiver(receivers.answering(503, Retry_After=header)) as running:
        outcome = send(running.url)
    assert (outcome.retry_after.total_seconds() if outcome.retry_after is not None else None) == seconds


def test_nobody_at_the_address_is_told_from_no_such_name() -> None:
    assert send(f"http://127.0.0.1:{free_port()}/").error is Code.CONNECT_FAILED

    def unknown(host: str, port: int) -> list[str]:
        raise UnknownHostError(host)

    assert Sender(BOX, LOOPBACK, 5, resolver=unknown).send(parcel("http://nowhere.test/")).error is Code.DNS_FAILED


# --- where a message may go


REFUSED = (
    *("127.0.0.1", "127.9.9.9", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1", "100.100.100.200"),
    *("169.254.169.254", "168.63.129.16", "192.0.0.192", "198.18.0.1", "203.0.113.1", "224.0.0.1", "239.255.255.250"),
    *("240.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "ff02::1"),
    *("fec0::1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe"),
    *("64:ff9b:1::1", "2002:7f00:1::", "2002:a9fe:a9fe::1", "2001:0:7f00:1::1", "2001:db8::1", "100::1"),
)
PERMITTED = (
    "1.1.1.1",
    "93.184.216.34",
    "2606:4700:4700::1111",
    "::ffff:1.1.1.1",
    "64:ff9b::101:101",
    "2002:101:101::1",
)


@pytest.mark.parametrize("address", REFUSED)
def test_addresses_off_the_public_internet_are_refused(address: str) -> None:
    assert not AddressPolicy().permits(address)


@pytest.mark.parametrize("address", PERMITTED)
def test_public_addresses_are_permitted(address: str) -> None:
    assert AddressPolicy().permits(address)


def test_an_operator_can_allow_networks_and_nothing_beside_them() -> None:
    policy = AddressPolicy([ip_network("10.1.0.0/16"), ip_network("fd00:1::/64")])
    assert policy.permits("10.1.2.3")
    assert policy.permits("::ffff:10.1.2.3")
    assert policy.permits("fd00:1::5")
    assert not policy.permits("10.2.0.1")
    assert not policy.permits("fd00:2::1")


def test_a_private_receiver_gets_nothing_by_address_or_by_name(well: Receiver) -> None:
    for host in ("127.0.0.1", "localhost", "[::ffff:127.0.0.1]"):
        assert send(f"http://{host}:{well.port}/hook", AddressPolicy()).error is Code.BLOCKED_ADDRESS, host
    assert well.got == []


def test_a_name_is_resolved_once_and_the_connection_goes_to_what_was_checked(well: Receiver) -> None:
    """A rebinding server answers the check with a good address and would answer a second question with a bad one."""
    answers = iter([["127.0.0.2"], ["127.0.0.1"]])
    asked = []

    def rebinding(host: str, _port: int) -> list[str]:
        asked.append(host)
        return next(answers)

    only_the_second = AddressPolicy([ip_network("127.0.0.2/32")])
    sender = Sender(BOX, only_the_second, 5, resolver=rebinding)
    url = f"http://localhost:{well.port}/"  # where a second look at the name would lead
    assert (
        sender.send(parcel(url)).error is Code.CONNECT_FAILED
    )  # nobody listens on 127.0.0.2, and nobody else was tried
    assert asked == ["localhost"]
    assert sender.send(parcel(url)).error is Code.BLOCKED_ADDRESS
    assert well.got == []


def test_of_several_addresses_only_the_permitted_are_tried_until_one_answers(well: Receiver) -> None:
    policy = AddressPolicy([ip_network("127.0.0.0/30")])
    mixed = ["127.0.0.9", "169.254.169.254", "127.0.0.2", "127.0.0.1"]
    sender = Sender(BOX, policy, 5, resolver=lambda _host, _port: mixed)
    assert sender.send(parcel(f"http://many.test:{well.port}/")).error is None
    assert well.got[0].headers["host"] == f"many.test:{well.port}"


def test_the_peer_of_the_socket_is_checked_whatever_the_resolver_says(well: Receiver) -> None:

    asked: list[str] = []

    class FirstOnly(AddressPolicy):
        """Permits one question, as if the answer of the kernel differed from that of the resolver."""

        def permits(self, text: str) -> bool:
            asked.append(text)
            return len(asked) == 1

    backend = GuardedBackend(FirstOnly(), Deadline(5), lambda _host, _port: ["127.0.0.1"])
    with pytest.raises(BlockedAddressError, match=r"connected to 127\.0\.0\.1"):
        backend.connect_tcp("anything.test", well.port)


# --- TLS


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


def served_as(authority: trustme.CA, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


@pytest.mark.parametrize(
    ("certified", "code"), [("good.test", None), ("other.test", Code.TLS_FAILED)], ids=["its name", "another name"]
)
def test_the_certificate_must_be_of_the_name_although_the_address_is_connected_to(
    authority: trustme.CA, certified: str, code: Code | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with authority.cert_pem.tempfile() as bundle, receiver(tls=served_as(authority, certified)) as running:
        monkeypatch.setenv("SSL_CERT_FILE", bundle)
        sender = Sender(BOX, LOOPBACK, 10, resolver=lambda _host, _port: ["127.0.0.1"])
        outcome = sender.send(parcel(running.url.replace("127.0.0.1", "good.test")))
    assert outcome.error is code
    assert len(running.got) == (code is None)


def test_a_certificate_of_nobody_known_is_refused(authority: trustme.CA) -> None:
    with receiver(tls=served_as(authority, "127.0.0.1")) as running:
        assert send(running.url).error is Code.TLS_FAILED
    assert running.got == []
