"""Every page: nothing wrong in the console, nobody else asked, readable for all in both modes."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.app.jobrows import add_job
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
STRUCTURE_OF_SWAGGER_UI = {
    "heading-order",
    "landmark-main-is-top-level",
    "landmark-no-duplicate-main",
    "landmark-unique",
    "scrollable-region-focusable",
    "select-name",
}
"""Rules of axe that its elements break, whatever their colours."""
IS_ON_TOP = """(element) => {
  const box = element.getBoundingClientRect();
  return element.contains(document.elementFromPoint((box.left + box.right) / 2, (box.top + box.bottom) / 2));
}"""
"""Whether nothing covers the middle of an element."""
SCROLL_TO_THE_RIGHT = "(place) => { place.scrollIntoView(); place.scrollTo(place.scrollWidth, 0); }"
IS_AT_ITS_RIGHT = "(place) => place.scrollLeft + place.clientWidth >= place.scrollWidth - 1"


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


def shade(page: Page, selector: str, property_: str) -> float:
    """The mean of red, green and blue, 0 to 255."""
    colour = page.locator(selector).first.evaluate("(place, name) => getComputedStyle(place)[name]", property_)
    return sum(map(float, re.findall(r"[\d.]+", colour)[:3])) / 3


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_description_of_the_api_is_light_or_dark_as_the_browser_wants_it(
    open_browser: Open, site: Site, axe: str, scheme: str
) -> None:
    page = open_browser(color_scheme=scheme, reduced_motion="reduce")
    sign_in(page, site.sample.secret)
    page.goto("/docs")
    page.get_by_text("/v1/capabilities").first.click()
    page.get_by_role("button", name="Try it out").click()
    page.get_by_role("button", name="Execute").click()
    expect(page.locator(".live-responses-table .microlight").first).to_be_visible()
    found = [each for each in violations(page, axe) if each.split(":")[0] not in STRUCTURE_OF_SWAGGER_UI]
    assert found == []
    for wanted in (scheme, "light" if scheme == "dark" else "dark"):  # also while the page is open
        page.emulate_media(color_scheme=wanted)
        is_dark = wanted == "dark"
        expect(page.locator("html.dark-mode")).to_have_count(int(is_dark))
        assert (shade(page, "#swagger", "backgroundColor") < 50) is is_dark
        assert (shade(page, "#swagger .opblock", "backgroundColor") < 50) is is_dark
        assert (shade(page, "#swagger .opblock-summary-path", "color") > 150) is is_dark


def test_every_page_fits_a_narrow_screen(open_browser: Open, site: Site) -> None:
    page = open_browser(viewport={"width": 360, "height": 740})
    page.goto(login_link(site, site.sample.secret))
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    sign_in(page, site.sample.secret)
    for name in PAGES:
        page.goto(address(site, name))
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, name


def test_no_list_of_jobs_is_wider_than_a_common_screen(open_browser: Open, site: Site) -> None:
    page = open_browser(viewport={"width": 1280, "height": 800})
    sign_in(page, site.sample.secret)
    for path in ("/jobs", "/"):
        page.goto(path)
        for table in page.locator(".scroll:has(table.jobs)").all():
            assert table.evaluate("(place) => place.scrollWidth <= place.clientWidth"), path


def test_on_a_narrow_screen_rows_are_cards_and_links_a_menu_also_without_javascript(
    open_browser: Open, site: Site
) -> None:
    page = open_browser(viewport={"width": 390, "height": 800}, java_script_enabled=False)
    sign_in(page, site.sample.secret)
    page.get_by_text("Menu", exact=True).click()
    page.get_by_role("link", name="Jobs", exact=True).click()
    page.wait_for_url("**/jobs")
    list_ = page.locator(".scroll:has(table.jobs)")
    assert list_.evaluate("(place) => place.scrollWidth <= place.clientWidth")
    expect(page.locator(".stack tbody td[data-label=Gates]").first).to_be_in_viewport()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_a_row_is_about_stays_while_its_figures_go_by(open_browser: Open, site: Site, scheme: str) -> None:
    page = open_browser(viewport={"width": 390, "height": 800}, color_scheme=scheme)
    sign_in(page, site.sample.secret)
    wide = []
    for name, there in (("learnt job", "#layer-table button.link"), ("compare", "#overlay-chart canvas")):
        page.goto(address(site, name))
        expect(page.locator(there).first).to_be_visible()
        page.locator("main details").evaluate_all("(all) => all.forEach((details) => { details.open = true; })")
        for place in page.locator(".scroll:has(table:not(.stack)):visible").all():
            if not place.evaluate("(place) => place.scrollWidth > place.clientWidth"):
                continue
            wide.append(name)
            place.evaluate(SCROLL_TO_THE_RIGHT)
            for heading in (place.locator("thead th").first, place.locator("tbody th[scope=row]").first):
                frame, box = place.bounding_box(), heading.bounding_box()
                assert frame is not None
                assert box is not None
                assert frame["x"] <= box["x"] < frame["x"] + 2
                assert 0 < box["width"] < 0.5 * frame["width"]
                assert heading.evaluate("(cell) => cell.scrollWidth <= cell.clientWidth + 1")
                assert re.match(
                    r"(rgb|color)\([^/]*\)$", heading.evaluate("(cell) => getComputedStyle(cell).backgroundColor")
                )
                assert heading.evaluate(IS_ON_TOP)
            assert place.evaluate(IS_AT_ITS_RIGHT)
    assert (wide.count("learnt job"), wide.count("compare")) == (3, 2)


def test_what_has_the_focus_is_not_beneath_the_heading_of_the_row(open_browser: Open, site: Site) -> None:
    page = open_browser(viewport={"width": 390, "height": 800})
    sign_in(page, site.sample.secret)
    page.goto(address(site, "learnt job"))
    expect(page.locator("#layer-table button.link").first).to_be_visible()
    place = page.locator(".scroll:has(#layer-table)")
    for button in page.locator("#layer-table thead").get_by_role("button").all():
        place.evaluate(SCROLL_TO_THE_RIGHT)
        button.focus()
        assert button.evaluate(IS_ON_TOP), button.inner_text()
    place.evaluate(SCROLL_TO_THE_RIGHT)
    page.locator("#layer-table tbody").get_by_role("button").nth(1).focus()
    assert place.evaluate(IS_AT_ITS_RIGHT)


def test_a_job_without_a_name_is_called_by_its_model_and_each_says_its_own(page: Page, site: Site) -> None:
    made = add_job(site.database, site.sample.tenant_id, site.sample.model, spec={"weights": {"bits": 3}})
    page.goto("/jobs")
    expect(page.locator(f"#to-{made}")).to_have_text(re.compile(r"^\w[^_]* · 3 bit · nupes$"))
    expect(page.locator(f"tr:has(#to-{site.sample.learnt})")).to_contain_text("3 bit, learnt · nupes")
    page.goto(f"/jobs/{made}")
    expect(page.get_by_role("heading", level=1)).to_have_text(re.compile(" · 3 bit · nupes$"))


def test_a_wrong_address_is_a_page_for_browsers_and_a_problem_for_others(open_browser: Open, site: Site) -> None:
    page = open_browser(java_script_enabled=False)
    answer = page.request.get("/nosuchpage", headers={"Accept": "text/html"})
    assert (answer.status, "To the overview" in answer.text()) == (404, True)
    for path, accept in (("/nosuchpage", "application/json"), ("/v1/nosuchpage", "text/html")):
        assert page.request.get(path, headers={"Accept": accept}).json()["code"] == "not_found"


def test_comparing_nothing_asks_for_a_choice(open_browser: Open, site: Site) -> None:
    page = open_browser(java_script_enabled=False)
    sign_in(page, site.sample.secret)
    answer = page.request.get("/jobs/compare", headers={"Accept": "text/html"})
    assert answer.status == 422
    assert answer.text().count("Choose 2 to 8 different jobs") == 1


def test_a_comparison_warns_of_what_does_not_compare(page: Page, site: Site) -> None:
    page.goto(f"/jobs/compare?ids={site.sample.succeeded},{site.sample.failed}")
    expect(page.locator(".notice.warning")).to_have_text(re.compile("^1 of 2 jobs have no measure of quality"))
    page.goto(f"/jobs/compare?ids={site.sample.succeeded},{site.sample.learnt}")
    expect(page.locator(".notice.warning")).to_have_count(0)
    expect(page.get_by_role("row", name="weights: bits 4 3")).to_be_visible()


def test_a_job_without_a_model_says_so_at_the_field(page: Page, site: Site) -> None:
    page.clock.install()
    page.goto("/jobs/new")
    page.get_by_label("Registered model").select_option("")
    page.get_by_role("button", name="Make the job").click()
    page.clock.fast_forward(2000)  # the plan of what was typed before would come now, and take all marks away
    expect(page.locator("#model-problem")).to_have_text("Choose a model")


def test_phases_that_a_job_left_out_are_not_ahead_of_it(page: Page, site: Site) -> None:
    page.goto(f"/jobs/{site.sample.running}")
    phases = page.locator("ol.phases li")
    expect(phases.filter(has_text="fetching")).to_have_attribute("data-state", "skipped")
    expect(phases.filter(has_text="fetching")).not_to_contain_text("ahead")
    expect(phases.filter(has_text="packaging")).to_contain_text("ahead")


def test_the_links_on_the_left_say_where_one_is(page: Page, site: Site) -> None:
    wanted = {"jobs": ("Jobs", "page"), "succeeded job": ("Jobs", "true"), "new job": ("New job", "page")}
    for name, (title, current) in wanted.items():
        page.goto(address(site, name))
        links = page.locator("nav [aria-current]:visible")
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
    page.goto("/jobs")
    page.get_by_text("More", exact=True).click()
    page.get_by_label("Model").select_option(site.sample.model)
    page.get_by_label("Made before (UTC)").fill("2001-01-31T10:30")
    page.get_by_role("button", name="Filter").click()
    expect(page.get_by_text("No jobs like that")).to_be_visible()
    expect(page.get_by_label("Made before (UTC)")).to_have_value("2001-01-31T10:30")
