"""Pictures of the dashboard with jobs that really ran, for the documentation: `make screenshots` writes them there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from secrets import token_urlsafe
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from app.settings import Settings
from nupes_client.client import Client
from nupes_client.schemas.specs import JobCreate
from tests.stack import Stack, running_stack
from tests.web.conftest import WAIT_MS, sign_in

LARGEST_BYTES = 150_000
TEXT = Path(__file__).parents[2] / "examples" / "text" / "lamplighter.txt"
WISHES: dict[str, dict[str, Any]] = {
    "booklm, 4 bit": {"weights": {"bits": 4}, "formats": ["nupes", "gguf"]},
    "booklm, 3 bit": {"weights": {"bits": 3, "group_size": 32}},
    "booklm, 3 bit, learnt": {
        "weights": {"bits": 3, "group_size": 32},
        "optimize": {"mode": "data_driven", "steps": 32},
        "calibration": {"length": 128},
    },
}
"""By the name of the job."""


@pytest.fixture
def stack(make_settings: Callable[..., Settings], sqlite_url: str) -> Iterator[Stack]:
    with running_stack(make_settings(database_url=sqlite_url)) as stack:
        yield stack


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    wanted = os.environ.get("SCREENSHOTS")
    folder = Path(wanted) if wanted else tmp_path / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def run_jobs(client: Client, booklm: Path) -> dict[str, str]:
    """Ids of the jobs, all of which have succeeded."""
    model, text = client.models.from_folder(booklm, name="booklm"), client.uploads.send(TEXT)
    ids = {}
    for name, wish in WISHES.items():
        about: dict[str, Any] = {
            "name": name,
            "labels": {"model": "booklm"},
            "model": {"id": model.id},
            "evaluation": {"metrics": ["fidelity", "perplexity"], "text": {"upload_id": text.id}},
            "gates": {"max_perplexity_increase_pct": 5},
        }
        if calibration := wish.get("calibration"):
            about["calibration"] = {**calibration, "text": {"upload_id": text.id}}
        ids[name] = client.jobs.create(JobCreate.model_validate({**wish, **about})).id
    for job_id in ids.values():
        assert client.jobs.wait(job_id, timeout_s=900).status == "succeeded"
    return ids


def pages(ids: dict[str, str], model: str) -> dict[str, tuple[str, str]]:
    """Name of the picture -> path of the page and what has to be there before the picture is taken."""
    four, three, learnt = ids.values()
    return {
        "overview": ("/", "#ended"),
        "new-job": (f"/jobs/new?model_id={model}", "#plan dl"),
        "job": (f"/jobs/{four}", "#formats"),
        "layers": (f"/jobs/{learnt}", "#grid-chart .bar >> nth=0"),
        "compare": (f"/jobs/compare?ids={four},{three},{learnt}", "#overlay-chart canvas"),
        "secrets": ("/secrets", "td a >> text=community >> nth=0"),
    }


def take(page: Page, path: Path) -> None:
    """The window; of the page with layers, the part that shows them."""
    if path.name.startswith("layers"):
        page.evaluate("scrollTo(0, document.getElementById('grid-chart').getBoundingClientRect().top - 300)")
    page.screenshot(path=path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_page_has_its_picture_in_both_modes(browser: Browser, stack: Stack, booklm: Path, folder: Path) -> None:
    with stack.client() as client:
        ids = run_jobs(client, booklm)
        (model,) = client.models.list()
        for name in ("community", "team"):
            client.secrets.set(name, token_urlsafe())
    wanted = pages(ids, model.id)
    for scheme in ("light", "dark"):
        context = browser.new_context(
            base_url=stack.url, color_scheme=scheme, viewport={"width": 1280, "height": 800}, reduced_motion="reduce"
        )
        context.set_default_timeout(WAIT_MS)
        page = context.new_page()
        sign_in(page, stack.api_key)
        for name, (path, there) in wanted.items():
            page.goto(path)
            expect(page.locator(there)).to_be_visible()
            take(page, folder / f"{name}-{scheme}.png")
        context.close()
    pictures = list(folder.glob("*.png"))
    assert len(pictures) == 2 * len(wanted)
    assert {picture.name: size for picture in pictures if (size := picture.stat().st_size) > LARGEST_BYTES} == {}
