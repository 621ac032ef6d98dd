"""Sessions of browsers: what opens them, what ends them, what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import httpx
import pytest
from playwright.sync_api import Page, expect
from sqlalchemy import select

from app.core.clock import now
from app.core.secret_key import load_pepper
from app.core.security import parse_secret
from app.db.tables import ApiKey, AuditEntry, LoginLink
from app.keys.links import purge
from app.keys.service import add_key
from tests.web.conftest import Site, Watch, login_link, sign_in

Open = Callable[..., Page]
COOKIE = "nupes_session"


@pytest.fixture
def secret(site: Site) -> str:
    """Of a key of its own, to be ended."""
    with site.database.write() as session:
        return add_key(session, load_pepper(site.settings), site.sample.tenant_id, "mine", ["admin"])[1]


def change_key(site: Site, secret: str, **columns: object) -> None:
    with site.database.write() as session:
        key = session.get_one(ApiKey, parse_secret(secret))
        for name, value in columns.items():
            setattr(key, name, value)


@pytest.fixture
def session(site: Site, secret: str) -> httpx.Client:
    """A client with the cookie of a session."""
    client = httpx.Client(base_url=site.url, trust_env=False, timeout=60)
    answer = client.post("/login", data={"api_key": secret})
    assert answer.status_code == 303
    return client


def token_of(session: httpx.Client) -> str:
    return session.get("/", headers={"Accept": "text/html"}).text.split('name="csrf-token" content="')[1].split('"')[0]


def test_a_visitor_signs_in_and_lands_where_they_wanted(open_browser: Open, site: Site) -> None:
    page = open_browser()
    page.goto("/jobs?status=failed")
    expect(page).to_have_title("Sign in · NUPES")
    page.get_by_label("API key").fill(site.sample.secret)
    page.keyboard.press("Enter")
    page.wait_for_url("**/jobs?status=failed")
    cookie = next(each for each in page.context.cookies() if each["name"] == COOKIE)
    assert cookie["httpOnly"]
    assert cookie["sameSite"] == "Lax"
    assert site.sample.secret not in str(page.context.cookies())
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url("**/login")
    page.goto("/jobs")
    expect(page).to_have_title("Sign in · NUPES")


def test_a_link_signs_a_browser_in_once_and_a_look_at_it_uses_nothing_up(
    open_browser: Open, site: Site, secret: str, watch: Watch
) -> None:
    watch.expected = ("410",)
    path = login_link(site, secret)
    for method in ("GET", "HEAD", "GET"):  # as previews do
        looked = httpx.request(method, site.url + path, trust_env=False, timeout=60)
        assert "set-cookie" not in looked.headers
    page = open_browser()
    page.goto(path)
    expect(page.get_by_text("with the key mine")).to_be_visible()
    page.keyboard.press("Enter")
    page.wait_for_url(site.url + "/")
    expect(page.get_by_role("button", name="Sign out")).to_be_visible()
    token = path.split("=")[1]
    assert token not in page.content()
    assert secret not in page.content()
    again = open_browser()
    again.goto(path)
    expect(again.get_by_role("alert")).to_contain_text("has been used")
    expect(again.get_by_label("API key")).to_be_visible()
    with site.database.read() as session:
        query = select(AuditEntry).where(AuditEntry.key_id == parse_secret(secret)).order_by(AuditEntry.id)
        entries = session.scalars(query).all()
    assert [each.action for each in entries] == ["login_link.created", "login_link.used"]
    assert {each.resource_id for each in entries} == {entries[0].resource_id}


def test_of_all_who_use_a_link_at_once_one_gets_in(site: Site, secret: str) -> None:
    token = login_link(site, secret).split("=")[1]

    def use(_: int) -> int:
        return httpx.post(f"{site.url}/login/link", data={"token": token}, trust_env=False, timeout=60).status_code

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(use, range(8))) == [303] + 7 * [410]


def test_the_database_knows_no_link_by_heart_and_forgets_old_ones(site: Site, secret: str) -> None:
    path = login_link(site, secret)
    token = path.split("=")[1]
    with site.database.write() as session:
        row = session.scalars(select(LoginLink).where(LoginLink.key_id == parse_secret(secret))).one()
        assert token not in (row.id, row.token_hash)
        assert now() < row.expires_at <= now() + timedelta(minutes=10)
        row.expires_at = now()
    assert httpx.get(site.url + path, trust_env=False, timeout=60).status_code == 410
    with site.database.write() as session:
        purge(session)
        assert session.scalars(select(LoginLink).where(LoginLink.key_id == parse_secret(secret))).all() == []


@pytest.mark.parametrize(
    "end",
    [{"revoked_at": "now"}, {"expires_at": "now"}, {"secret_hash": "1" * 64}],
    ids=["revoked", "expired", "rotated"],
)
def test_a_link_ends_with_its_key(site: Site, secret: str, end: dict[str, str]) -> None:
    path = login_link(site, secret)
    change_key(site, secret, **{name: now() if value == "now" else value for name, value in end.items()})
    client = httpx.Client(base_url=site.url, trust_env=False, timeout=60)
    assert client.get(path).status_code == 401
    answer = client.post("/login/link", data={"token": path.split("=")[1]})
    assert (answer.status_code, "set-cookie" in answer.headers) == (401, False)


def test_a_session_makes_no_links_and_so_no_longer_sessions(session: httpx.Client) -> None:
    answer = session.post("/v1/keys/login-links", headers={"X-CSRF-Token": token_of(session)})
    assert (answer.status_code, answer.json()["code"]) == (403, "key_needed")


def test_a_link_opens_no_more_than_its_key(site: Site) -> None:
    with site.database.write() as session:
        small = add_key(session, load_pepper(site.settings), site.sample.tenant_id, "small", ["models:read"])[1]
    client = httpx.Client(base_url=site.url, trust_env=False, timeout=60)
    assert client.post("/login/link", data={"token": login_link(site, small).split("=")[1]}).status_code == 303
    assert (client.get("/v1/models").status_code, client.get("/v1/jobs").status_code) == (200, 403)


def test_a_key_that_opens_nothing_is_refused_with_the_reason(open_browser: Open, watch: Watch) -> None:
    watch.expected = ("401",)
    page = open_browser()
    page.goto("/login")
    page.get_by_label("API key").fill("nupes_wrong")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("does not look like")


@pytest.mark.parametrize(
    "end",
    [{"revoked_at": "now"}, {"expires_at": "now"}, {"secret_hash": "0" * 64}],
    ids=["revoked", "expired", "rotated"],
)
def test_a_session_ends_with_its_key(site: Site, secret: str, session: httpx.Client, end: dict[str, str]) -> None:
    assert session.get("/v1/jobs").status_code == 200
    change_key(site, secret, **{name: now() if value == "now" else value for name, value in end.items()})
    assert session.get("/v1/jobs").status_code == 401
    page = session.get("/jobs", headers={"Accept": "text/html"})
    assert (page.status_code, page.headers["location"]) == (303, "/login?next=/jobs")


def test_a_session_outlives_a_rotation_for_its_overlap(site: Site, session: httpx.Client, secret: str) -> None:
    key_id = parse_secret(secret)
    headers = {"X-CSRF-Token": token_of(session)}
    assert session.post(f"/v1/keys/{key_id}/rotate", json={"overlap_s": 3600}, headers=headers).status_code == 200
    assert session.get("/v1/jobs").status_code == 200
    change_key(site, secret, previous_until=now() - timedelta(seconds=1))
    assert session.get("/v1/jobs").status_code == 401


def test_a_change_without_the_token_of_the_session_is_refused(session: httpx.Client) -> None:
    body = {"name": "x", "scopes": ["jobs:read"]}
    for headers in ({}, {"X-CSRF-Token": "0" * 64}, {"X-CSRF-Token": b"\xc3\xa9"}):
        answer = session.post("/v1/keys", json=body, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (403, "csrf")
    assert session.post("/v1/keys", json=body, headers={"X-CSRF-Token": token_of(session)}).status_code == 201


def test_the_token_of_another_session_is_none(site: Site, session: httpx.Client) -> None:
    other = httpx.Client(base_url=site.url, trust_env=False, timeout=60)
    other.post("/login", data={"api_key": site.sample.secret})
    headers = {"X-CSRF-Token": token_of(other)}
    assert session.post("/v1/keys", json={"name": "x", "scopes": ["jobs:read"]}, headers=headers).status_code == 403


@pytest.mark.parametrize(
    "headers", [{"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "null"}]
)
@pytest.mark.parametrize("path", ["/login", "/login/link", "/logout"])
def test_forms_of_other_sites_sign_nobody_in_or_out(
    site: Site, session: httpx.Client, path: str, headers: dict[str, str]
) -> None:
    token = login_link(site, site.sample.secret).split("=")[1]
    answer = session.post(path, data={"api_key": site.sample.secret, "token": token}, headers=headers)
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("cookie", ["", "x", "key_1.2.3.4", f"key_{'0' * 26}.9999999999.{'0' * 32}.{'0' * 64}"])
def test_a_made_up_cookie_opens_nothing(site: Site, cookie: str) -> None:
    client = httpx.Client(base_url=site.url, trust_env=False, cookies={COOKIE: cookie}, timeout=60)
    assert client.get("/v1/jobs").status_code == 401


def test_a_session_can_not_be_made_longer(session: httpx.Client, site: Site) -> None:
    key_id, expiry, nonce, signature = session.cookies[COOKIE].split(".")
    changed = ".".join((key_id, str(int(expiry) + 3600), nonce, signature))
    client = httpx.Client(base_url=site.url, trust_env=False, cookies={COOKIE: changed}, timeout=60)
    assert client.get("/v1/jobs").status_code == 401


@pytest.mark.parametrize("target", ["https://evil.example", "//evil.example", "/\\evil.example", "jobs"])
def test_nobody_is_sent_elsewhere_after_signing_in(site: Site, target: str) -> None:
    answer = httpx.post(
        f"{site.url}/login", data={"api_key": site.sample.secret, "next": target}, trust_env=False, timeout=60
    )
    assert answer.headers["location"] == "/"


def test_the_session_ends_in_an_open_page_too(open_browser: Open, site: Site, secret: str, watch: Watch) -> None:
    watch.expected = ("401",)
    page = open_browser()
    sign_in(page, secret)
    page.goto("/jobs")
    change_key(site, secret, revoked_at=now())
    page.wait_for_url("**/login?next=/jobs")  # the list asks for news every few seconds
