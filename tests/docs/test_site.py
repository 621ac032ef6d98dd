"""The site builds with strict links, loads nothing from elsewhere, and explains every code."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from nupes_client.schemas.problems import JobErrorCode
from tests.docs.commands import REPOSITORY

TROUBLESHOOTING = (REPOSITORY / "docs" / "troubleshooting.md").read_text("utf-8")
_LOADED = re.compile(r"<(?:script|img|iframe|link rel=\"stylesheet\")[^>]+(?:src|href)=\"(?:https?:)?//")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_pages_made_from_code_are_there(site: Path) -> None:
    api = (site / "reference" / "api" / "index.html").read_text("utf-8")
    assert "POST /v1/jobs" in api
    assert "idempotency" in api.lower()
    assert "nupes quantize" in (site / "reference" / "cli" / "index.html").read_text("utf-8")
    assert "NUPES_FAN_OUT_BYTES" in (site / "reference" / "settings" / "index.html").read_text("utf-8")
    assert "from_folder" in (site / "reference" / "sdk" / "index.html").read_text("utf-8")
    assert "AutoRound" in (site / "measured" / "quality" / "index.html").read_text("utf-8")


def test_pictures_and_formulas_are_part_of_the_page(site: Path) -> None:
    concepts = (site / "concepts" / "index.html").read_text("utf-8")
    assert concepts.count('<svg role="img"') == 2
    assert "<math" in concepts
    assert "$$" not in concepts


def test_a_reader_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    assert [page for page in pages if _LOADED.search(page.read_text("utf-8"))] == []


def test_every_reason_of_a_failed_job_is_explained() -> None:
    explained = set(re.findall(r"^### `(\w+)`$", TROUBLESHOOTING, re.MULTILINE))
    assert explained == {code.value for code in JobErrorCode}


def test_refusals_are_explained_by_the_codes_that_the_service_uses() -> None:
    codes = re.findall(r"^\| \d{3} \| `(\w+)` \|", TROUBLESHOOTING, re.MULTILINE)
    source = "\n".join(path.read_text("utf-8") for path in (REPOSITORY / "app").rglob("*.py"))
    assert codes
    assert [code for code in codes if f'"{code}"' not in source] == []
