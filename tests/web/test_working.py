"""What people do with the dashboard, short of a worker's part."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Page, Request, expect

from app.db.tables import Job
from tests.app.jobrows import add_job, claim
from tests.web.conftest import Site, Watch

Open = Callable[..., Page]


def test_several_jobs_are_cancelled_at_once(page: Page, site: Site) -> None:
    ids = [add_job(site.database, site.sample.tenant_id, site.sample.model, name=f"of many {n}") for n in range(3)]
    page.goto("/jobs?status=queued")
    for job_id in ids[:2]:
        page.locator(f"#pick-{job_id}").check()
    page.get_by_role("button", name="Cancel 2").click()
    page.get_by_role("button", name="Yes, do it").click()
    expect(page.locator(f"#pick-{ids[0]}")).to_have_count(0)
    expect(page.locator(f"#pick-{ids[2]}")).to_be_visible()
    with site.database.read() as session:
        assert [session.get_one(Job, job_id).status for job_id in ids] == ["cancelled", "cancelled", "queued"]


def test_picked_jobs_are_compared(page: Page, site: Site) -> None:
    page.goto("/jobs")
    for job_id in (site.sample.succeeded, site.sample.learnt):
        page.locator(f"#pick-{job_id}").check()
    page.get_by_role("link", name="Compare").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("2 jobs side by side")
    expect(page.locator("#pareto-chart canvas")).to_be_visible()
    expect(page.locator("#overlay-chart canvas")).to_be_visible()


def test_a_running_job_moves_before_ones_eyes(page: Page, site: Site) -> None:
    job_id = add_job(site.database, site.sample.tenant_id, site.sample.model, name="moves")
    page.goto(f"/jobs/{job_id}")
    expect(page.locator("#live .status").first).to_have_text("queued")
    claim(site.database, job_id)
    expect(page.locator("#live .status").first).to_have_text("running")
    expect(page.locator("#log-lines")).to_contain_text("status running")
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Yes, do it").click()
    expect(page.locator("#live .status").first).to_have_text("cancelling")


def test_a_job_that_was_pushed_says_where_to_and_only_such_a_job_has_that_phase(page: Page, site: Site) -> None:
    page.goto(f"/jobs/{site.sample.learnt}")
    expect(page.get_by_role("link", name="team/tiny")).to_have_attribute("href", "https://hub.example/team/tiny")
    expect(page.locator("ol.phases")).to_contain_text("pushing")
    page.goto(f"/jobs/{site.sample.succeeded}")
    expect(page.locator("ol.phases")).not_to_contain_text("pushing")


def test_layers_are_sorted_and_chosen_by_keyboard(page: Page, site: Site) -> None:
    page.goto(f"/jobs/{site.sample.learnt}")
    expect(page.locator("#layer-charts canvas")).to_have_count(3)
    expect(page.locator("#loss-chart canvas")).to_be_visible()
    heading = page.get_by_role("columnheader", name="SQNR, dB")
    heading.get_by_role("button").press("Enter")
    expect(heading).to_have_attribute("aria-sort", "ascending")
    cells = page.locator("#layer-table tbody tr td:nth-child(6)").evaluate_all(
        "cells => cells.map(c => c.dataset.value)"
    )
    values = [float(value) for value in cells if value]
    assert values == sorted(values)
    chosen = page.get_by_role("button", name="model.layers.3.mlp.up_proj")
    chosen.press("Enter")
    expect(page.locator("#grid-chart h3")).to_contain_text("model.layers.3.mlp.up_proj: 8 levels")
    expect(page.locator("#grid-chart .level")).to_have_count(8)
    expect(page.locator("#grid-chart .bar")).to_have_count(64)


def test_the_plan_follows_the_form_and_says_which_field_is_wrong(page: Page, site: Site, watch: Watch) -> None:
    watch.expected = ("422",)
    page.goto(f"/jobs/new?model_id={site.sample.model}")
    expect(page.locator("#plan")).to_contain_text("Bits per weight4.1")
    expect(page.locator("#commands")).to_contain_text(f"nupes quantize {site.sample.model} --wait")
    page.get_by_label("Bits", exact=True).first.fill("3")
    expect(page.locator("#plan")).to_contain_text("Bits per weight3.1")
    expect(page.locator("#commands")).to_contain_text("--bits 3")
    page.get_by_label("Bits", exact=True).first.fill("99")
    expect(page.locator("#weights-bits-problem")).to_contain_text("must be at most 8")
    expect(page.get_by_label("Bits", exact=True).first).to_have_attribute("aria-invalid", "true")
    page.get_by_label("Bits", exact=True).first.fill("5")
    page.get_by_role("group", name="Formats").get_by_label("compressed-tensors").check()
    expect(page.locator("#formats-problem")).to_contain_text("compressed-tensors holds weights of 4 or 8 bits")
    expect(page.locator("#plan")).to_have_text("See the marked fields.")


def test_a_preset_fills_the_form_and_a_clone_repeats_a_wish(page: Page, site: Site) -> None:
    page.goto(f"/jobs/new?model_id={site.sample.model}")
    page.get_by_role("button", name="3 bit, learnt").click()
    expect(page.locator("#commands")).to_contain_text("--bits 3 --optimize data-driven")
    page.goto(f"/jobs/new?from={site.sample.succeeded}")
    expect(page.locator("#commands")).to_contain_text("--gate max_bytes=400")
    page.get_by_role("button", name="Make the job").click()
    page.wait_for_url("**/jobs/job_*")
    job_id = page.url.rsplit("/", 1)[1]
    with site.database.read() as session:
        assert session.get_one(Job, job_id).config == session.get_one(Job, site.sample.succeeded).config


def test_a_key_is_made_shown_once_and_revoked(page: Page) -> None:
    page.goto("/keys")
    page.get_by_text("Make a key").click()
    page.get_by_label("Name").fill("for the pipeline")
    page.get_by_label("jobs:read").check()
    page.get_by_role("button", name="Make it").click()
    expect(page.locator("#made pre")).to_have_text(re.compile(r"^nupes_\w{65}$"))
    page.reload()
    expect(page.locator("#made")).to_be_hidden()
    page.get_by_role("button", name="Revoke for the pipeline").click()
    page.get_by_role("button", name="Yes, do it").click()
    expect(page.get_by_role("row", name="for the pipeline").locator(".status")).to_have_text("revoked")


def test_a_webhook_is_tested_from_its_page(page: Page, site: Site) -> None:
    page.goto(f"/webhooks/{site.sample.webhook}")
    page.get_by_role("button", name="Send a test").click()
    expect(page.get_by_role("cell", name="webhook.test")).to_be_visible()


def test_a_transfer_that_broke_off_goes_on_where_it_stopped(page: Page, tmp_path: Path, watch: Watch) -> None:
    """The first piece arrives, the connection goes, the page is left; dropped again, only the rest is sent."""
    watch.expected = ("ERR_FAILED", "400", "422")
    content = bytes(9 * 1024 * 1024)
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    sent: list[int] = []

    def let_one_through(route: object) -> None:
        request = route.request  # type: ignore[attr-defined]
        if request.method == "PATCH":
            sent.append(int(request.headers["upload-offset"]))
            if len(sent) > 1:
                route.abort()  # type: ignore[attr-defined]
                return
        route.fallback()  # type: ignore[attr-defined]

    page.goto("/models")
    page.get_by_text("Add a model").click()
    page.route("**/v1/uploads/*", let_one_through)
    page.locator("#files").set_input_files(file)
    page.wait_for_function("() => document.querySelector('#transfers progress')?.value > 8e6")
    page.reload()
    page.unroute("**/v1/uploads/*")
    page.get_by_text("Add a model").click()
    with page.expect_request(lambda request: request.method == "PATCH") as rest:
        page.locator("#files").set_input_files(file)
    assert int(rest.value.headers["upload-offset"]) == 8 * 1024 * 1024
    expect(page.locator("#transfers li").first).to_contain_text("sent")


def test_the_form_sends_only_what_differs_from_the_defaults(page: Page, site: Site) -> None:
    page.goto(f"/jobs/new?model_id={site.sample.model}")

    def tells_the_name(request: Request) -> bool:  # not the plan that the page asks for by itself
        return request.url.endswith("/v1/plans") and "tidy" in (request.post_data or "")

    with page.expect_request(tells_the_name) as asked:
        page.get_by_label("Name").fill("tidy")
    assert json.loads(asked.value.post_data or "") == {
        "model": {"id": site.sample.model},
        "evaluation": {},
        "name": "tidy",
    }
