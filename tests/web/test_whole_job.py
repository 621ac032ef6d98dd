"""The whole way in a browser, with nothing but what a user has: files, the service as `nupes up` runs it, a key."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from app.settings import Settings
from nupes_client.client import Client
from nupes_core.quantizer.histogram import BINS
from tests.models import llama
from tests.stack import Stack, running_stack
from tests.web.conftest import WAIT_MS, Watch, sign_in

JOB_MS = 240_000


@pytest.fixture
def stack(make_settings: Callable[..., Settings], sqlite_url: str) -> Iterator[Stack]:
    with running_stack(make_settings(database_url=sqlite_url)) as stack:
        yield stack


@pytest.mark.timeout(400)
def test_a_model_is_dropped_quantized_watched_and_downloaded(browser: Browser, stack: Stack, tmp_path: Path) -> None:
    folder = llama(tmp_path / "model")
    watch = Watch(stack.url)
    context = browser.new_context(base_url=stack.url, accept_downloads=True)
    context.set_default_timeout(WAIT_MS)
    watch.over(context)
    page = context.new_page()
    sign_in(page, stack.api_key)

    page.get_by_role("link", name="New job").first.click()
    page.wait_for_url("**/jobs/new")
    (folder / "tokenizer_config.json").unlink()  # names code, which the service refuses
    (folder / "pytorch_model.bin").write_bytes(b"left where it is")
    page.locator("#folder").set_input_files(folder)
    expect(page.locator("#plan")).to_contain_text("Workers that fitcpu")
    page.get_by_label("Name").fill("by browser")
    page.get_by_label("Evaluation").uncheck()
    page.get_by_label("Gates").check()
    page.get_by_label("Min. coverage, %").fill("10")
    page.get_by_role("button", name="Make the job").click()

    expect(page.get_by_role("heading", level=1)).to_have_text("by browser")
    expect(page.locator("#live .status").first).to_have_text("succeeded", timeout=JOB_MS)
    expect(page.locator("#live")).to_contain_text("gates passed")
    expect(page.locator("#layer-charts canvas")).to_have_count(3)
    expect(page.locator("#log-lines")).to_contain_text("status succeeded")
    expect(page.locator("#grid-chart .level")).to_have_count(16)
    expect(page.locator("#grid-chart .bar")).to_have_count(BINS)
    expect(page.locator(".phases li[data-state=done]").first).to_be_visible()

    page.locator("summary", has_text="nupes").click()
    row = page.get_by_role("row", name="model.safetensors")
    with page.expect_download() as download:
        row.get_by_role("link").click()
    found = hashlib.sha256(Path(download.value.path()).read_bytes()).hexdigest()
    assert found == row.locator("td").nth(2).inner_text()

    with Client(stack.url, stack.api_key) as client:
        (job,), (model,) = client.jobs.list(), client.models.list()
        assert (model.name, "pytorch_model.bin" in [file.path for file in model.files]) == ("model", False)
        assert job.config.evaluation is None
        assert json.loads((folder / "config.json").read_text())["model_type"] == "llama"
    context.close()
    watch.verify()
