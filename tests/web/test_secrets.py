"""Secrets in the browser: stored, chosen for a push, replaced and deleted; no page has a value."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest
from playwright.sync_api import Page, expect

from app.secrets.sealing import MissingSecretError, take
from nupes_client.client import Client
from tests.web.conftest import Site, Watch, sign_in

VALUE = "hf_ThatNobodySeesAgain"
OTHER = "hf_TheNextOne"


def value_of(site: Site, name: str) -> str:
    """What a job would take to the hub."""
    with site.database.write() as session:
        return take(session, site.settings, site.sample.tenant_id, name, "hub_token")


def store(page: Page, name: str, value: str) -> None:
    page.goto("/secrets")
    page.get_by_text("Store a secret").click()
    page.get_by_label("Name").fill(name)
    page.get_by_label("Value", exact=True).fill(value)
    page.get_by_role("button", name="Store it").click()
    expect(page.get_by_role("link", name=name, exact=True)).to_be_visible()


def test_a_secret_is_stored_replaced_and_deleted_and_no_page_has_its_value(page: Page, site: Site) -> None:
    store(page, "mine", VALUE)
    assert value_of(site, "mine") == VALUE
    page.reload()
    assert VALUE not in page.content()
    expect(page.get_by_role("row", name="mine").get_by_role("cell").nth(1)).to_have_text("hub_token")
    expect(page.get_by_role("row", name="mine").get_by_role("cell").nth(4).locator("time")).to_be_visible()

    page.get_by_role("link", name="Replace mine").click()
    page.get_by_label("Value", exact=True).fill(OTHER)
    page.get_by_role("button", name="Replace it").click()
    page.wait_for_url("**/secrets")
    assert value_of(site, "mine") == OTHER

    page.get_by_role("button", name="Delete mine").click()
    expect(page.locator("#confirm-text")).to_contain_text("Delete the secret mine?")
    page.get_by_role("button", name="Back").click()
    expect(page.get_by_role("link", name="mine", exact=True)).to_be_visible()
    page.get_by_role("button", name="Delete mine").click()
    page.get_by_role("button", name="Yes, do it").click()
    expect(page.get_by_role("link", name="mine", exact=True)).to_have_count(0)
    with pytest.raises(MissingSecretError):
        value_of(site, "mine")


def test_a_value_that_no_hub_would_take_is_marked_where_it_stands(page: Page, site: Site, watch: Watch) -> None:
    watch.expected = ("422",)
    page.goto("/secrets/team")
    page.get_by_label("Value", exact=True).fill("with a blank")
    page.get_by_role("button", name="Replace it").click()
    expect(page.locator("#secret-value-problem")).to_contain_text("without spaces")
    expect(page.get_by_label("Value", exact=True)).to_be_focused()


def test_a_push_names_a_stored_secret_also_one_that_another_tab_stores_meanwhile(
    page: Page, site: Site, watch: Watch
) -> None:
    watch.expected = ("422",)  # of the plan, while the wish is half written
    page.goto(f"/jobs/new?model_id={site.sample.model}")
    page.get_by_label("Push to hub").check()
    page.get_by_label("Repo", exact=True).fill("team/tiny")
    choice = page.get_by_label("Secret", exact=True)
    choice.select_option("team")
    expect(page.locator("#commands")).to_contain_text("--push team/tiny --push-secret team")
    choice.select_option("")
    with page.context.expect_page() as opened:
        page.get_by_role("link", name="Store one").click()
    store(opened.value, "made-meanwhile", VALUE)
    expect(choice).to_have_value("made-meanwhile")
    expect(page.locator("#commands")).to_contain_text("--push-secret made-meanwhile")


def test_a_clone_names_the_secret_of_its_job_even_when_that_is_gone(page: Page, site: Site) -> None:
    with Client(site.url, site.sample.secret) as client:
        client.secrets.delete("team")
        page.goto(f"/jobs/new?from={site.sample.learnt}")
        client.secrets.set("team", VALUE)
    choice = page.get_by_label("Secret", exact=True)
    expect(choice).to_have_value("team")
    expect(choice.locator("option:checked")).to_have_text("team (not stored)")


def test_a_key_that_may_not_see_secrets_can_still_name_one(
    open_browser: Callable[..., Page], site: Site, watch: Watch
) -> None:
    watch.expected = ("422",)  # of the plan, while the wish is half written
    with Client(site.url, site.sample.secret) as client:
        key = client.keys.create("jobs only", ["jobs:read", "jobs:write", "models:read"])
    page = open_browser()
    sign_in(page, key.secret)
    page.goto("/jobs/new")
    expect(page.get_by_role("link", name="Secrets")).to_have_count(0)
    page.get_by_label("Push to hub").check()
    page.get_by_label("Secret", exact=True).fill("team")
    expect(page.get_by_role("link", name="Store one")).to_have_count(0)


def test_without_javascript_no_value_can_be_sent_by_mistake(open_browser: Callable[..., Page], site: Site) -> None:
    page = open_browser(java_script_enabled=False)
    sign_in(page, site.sample.secret)
    for path in ("/secrets", "/secrets/team"):
        page.goto(path)
        expect(page.locator("noscript p")).to_be_visible()
        expect(page.locator("#secret-value")).to_be_hidden()
        form = page.locator("form[data-send]")
        assert form.get_attribute("method") == "post", "a value must never stand in an address"


def test_pages_of_secrets_ask_for_their_scope(site: Site) -> None:
    with Client(site.url, site.sample.secret) as client:
        key = client.keys.create("looks only", ["jobs:read"])
    headers = {"Authorization": f"Bearer {key.secret}"}
    with httpx.Client(base_url=site.url, headers=headers, trust_env=False, timeout=60) as http:
        for path in ("/secrets", "/secrets/team"):
            assert http.get(path, headers={"Accept": "text/html"}).status_code == 403
