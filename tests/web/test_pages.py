"""Every page: nothing wrong in the console, nobody else asked, readable for all in both modes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.web.conftest import Site, login_link, sign_in

Open = Callable[..., Page]

PAGES = {
    "overview": "/",
    "jobs": "/jobs",
    "filtered": "/jobs?status=failed&label.pipeline=nightly",
    "new job": "/jobs/new",
    "cloned job": "/jobs/new?from={learnt}",
    "queued job": "/jobs/{queued}",
    "running job": "/jobs/{running}",
    "succeeded job": "/jobs/{succeeded}",
    "learnt job": "/jobs/{learnt}",
    "failed job": "/jobs/{failed}",
    "compare": "/jobs/compare?ids={succeeded},{learnt},{failed}",
    "models": "/models",
    "model": "/models/{model}",
    "keys": "/keys",
    "webhooks": "/webhooks",
    "webhook": "/webhooks/{webhook}",
    "secrets": "/secrets",
    "secret": "/secrets/team",
    "usage": "/usage",
}
"""By name; `{...}` is an id of the sample."""
SCHEMES = ("light", "dark")


def address(site: Site, name: str) -> str:
    return PAGES[name].format(**vars(site.sample))


def violations(page: Page, axe: str) -> list[str]:
    """What axe finds against WCAG 2.2 A and AA, as `rule: element`."""
    page.evaluate(f"() => {{ {axe} }}")
    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
    found = page.evaluate("(tags) => axe.run(document, { runOnly: tags })", tags)["violations"]
    return [f"{rule['id']}: {node['html'][:160]}" for rule in found for node in rule["nodes"]]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_page_is_accessible_in_both_modes(open_browser: Open, site: Site, axe: str, scheme: str) -> None:
    page = open_browser(color_scheme=scheme)
    for path in ("/login", login_link(site, site.sample.secret)):
        page.goto(path)
        assert violations(page, axe) == [], path
    sign_in(page, site.sample.secret)
    for name in PAGES:
        page.goto(address(site, name))
        expect(page.get_by_role("heading", level=1)).to_be_visible()
        assert violations(page, axe) == [], name
        expect(page.locator("#messages .notice")).to_have_count(0)


def test_what_the_schema_says_of_a_field_reads_as_prose(page: Page) -> None:
    page.goto("/jobs/new")
    expect(page.locator("#device-help code")).to_have_text("auto")


def test_the_description_of_the_api_shows_and_calls_it(page: Page) -> None:
    page.goto("/docs")
    page.get_by_text("/v1/capabilities").first.click()
    page.get_by_role("button", name="Try it out").click()
    with page.expect_response("**/v1/capabilities") as answer:
        page.get_by_role("button", name="Execute").click()
    assert answer.value.status == 200


def test_every_page_fits_a_narrow_screen(open_browser: Open, site: Site) -> None:
    page = open_browser(viewport={"width": 360, "height": 740})
    page.goto(login_link(site, site.sample.secret))
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    sign_in(page, site.sample.secret)
    for name in PAGES:
        page.goto(address(site, name))
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, name


def test_the_links_on_the_left_say_where_one_is(page: Page, site: Site) -> None:
    wanted = {"jobs": ("Jobs", "page"), "succeeded job": ("Jobs", "true"), "new job": ("New job", "page")}
    for name, (title, current) in wanted.items():
        page.goto(address(site, name))
        links = page.locator("nav [aria-current]")
        expect(links).to_have_count(1)
        expect(links).to_have_text(title)
        expect(links).to_have_attribute("aria-current", current)


def test_every_page_reads_without_javascript(open_browser: Open, site: Site) -> None:
    page = open_browser(java_script_enabled=False)
    sign_in(page, site.sample.secret)
    for name in PAGES:
        page.goto(address(site, name))
        expect(page.get_by_role("heading", level=1)).to_be_visible()
    page.goto("/jobs")
    page.get_by_label("failed", exact=True).first.check()
    page.get_by_role("button", name="Filter").click()
    expect(page.get_by_role("link", name="too large")).to_be_visible()
    expect(page.get_by_role("link", name="on its way")).to_have_count(0)
