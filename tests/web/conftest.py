"""A real service, a real Chromium, and a watch over what the browser does with it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from app.db.migrate import upgrade
from app.db.session import Database
from app.main import create_app
from app.settings import Settings
from nupes_client.client import Client
from tests.app.serving import serve
from tests.web.sample import Sample, fill

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WAIT_MS = 60_000
"""For anything to happen: other tests may have the machine."""
expect.set_options(timeout=WAIT_MS)


@dataclass(frozen=True)
class Site:
    """A running service with a sample of everything, and no worker: what is running stays so."""

    url: str
    settings: Settings
    database: Database
    sample: Sample


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    data_dir = tmp_path_factory.mktemp("web")
    settings = Settings(data_dir=data_dir, queue_prefix="nupes-web-test.", log_json=False)
    upgrade(settings.resolved_database_url)
    database = Database(settings.resolved_database_url)
    sample = fill(settings, database)
    with serve(create_app(settings)) as url:
        yield Site(url, settings, database, sample)
    database.dispose()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The machine's Chromium. Of the module, not of the session: while it is open no other test can start a loop."""
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        message = "NO BROWSER HERE: the dashboard was not tested. Install one: apt-get install chromium"
        if os.environ.get("NUPES_REQUIRE_BROWSER") == "1":
            pytest.fail(message)
        pytest.skip(message)
    with sync_playwright() as playwright:
        # Root may not use the sandbox, and /dev/shm of a container may be too small.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


@dataclass
class Watch:
    """What a browser should not do: complain, or talk to anybody but the service."""

    origin: str
    complaints: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    expected: tuple[str, ...] = ()
    """Parts of complaints that a test causes on purpose."""

    def over(self, context: BrowserContext) -> None:
        context.on("console", lambda message: self._hear(message.type, message.text))
        context.on("weberror", lambda error: self.complaints.append(str(error.error)))
        context.on("request", lambda request: self._see(request.url))

    def _hear(self, kind: str, text: str) -> None:
        if kind in {"error", "warning"}:
            self.complaints.append(text)

    def _see(self, url: str) -> None:
        if not url.startswith((self.origin, "data:", "blob:")):
            self.outside.append(url)

    def verify(self) -> None:
        assert self.outside == []
        assert [text for text in self.complaints if not any(part in text for part in self.expected)] == []


@pytest.fixture
def watch(site: Site) -> Watch:
    return Watch(site.url)


@pytest.fixture
def open_browser(browser: Browser, site: Site, watch: Watch) -> Iterator[Callable[..., Page]]:
    """Open pages in a fresh profile; at the end nothing may have gone wrong in any of them."""
    contexts = []

    def build(**options: object) -> Page:
        context = browser.new_context(base_url=site.url, **options)  # type: ignore[arg-type]
        context.set_default_timeout(WAIT_MS)
        contexts.append(context)
        watch.over(context)
        return context.new_page()

    yield build
    for context in contexts:
        context.close()
    watch.verify()


@pytest.fixture
def page(open_browser: Callable[..., Page], site: Site) -> Page:
    """A signed-in page."""
    page = open_browser()
    sign_in(page, site.sample.secret)
    return page


def sign_in(page: Page, secret: str) -> None:
    page.goto("/login")
    page.get_by_label("API key").fill(secret)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(lambda url: "/login" not in url)


def login_link(site: Site, secret: str) -> str:
    """A path that signs a browser in with this key."""
    with Client(site.url, secret) as client:
        return client.keys.login_link().path


@pytest.fixture
def axe() -> str:
    """The accessibility checker, an npm package that `make setup` puts here."""
    path = Path(__file__).parent / "vendor" / "axe.min.js"
    assert path.is_file(), "axe is missing: run `make setup`"
    return path.read_text()
