"""What a release is: built from the source as a packager does, installed bare, light and quick."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import venv
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
LIGHT_BYTES = 20_000_000
"""Of all files that a bare install brings, without bytecode; 18.5 MB when this was written."""
LIGHT_COMPILED_BYTES = 33_000_000
"""With the bytecode that pip compiles (uv does not); 32.3 MB when this was written, where 30 MB are wanted. 26.9 MB
are dependencies, a third of that Pygments, which rich asks for. It must not grow unnoticed.
"""
TOOLS = {"pip", "setuptools", "wheel"}
SIZES = """
import importlib.metadata, json
sizes = {}
for each in importlib.metadata.distributions():
    files = [file for file in map(each.locate_file, each.files or ()) if file.exists()]
    all_of_it = sum(file.stat().st_size for file in files)
    bytecode = sum(file.stat().st_size for file in files if file.suffix == ".pyc")
    sizes[each.name] = (all_of_it - bytecode, all_of_it)
print(json.dumps(sizes))
"""


def run(*command: str | Path, cwd: Path = REPOSITORY) -> str:
    return subprocess.run([*map(str, command)], cwd=cwd, check=True, capture_output=True, text=True, timeout=600).stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of what git has, as a release is, through the source distribution."""
    source, dist = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    run("git", "checkout-index", "--all", f"--prefix={source}/")
    run(sys.executable, "-m", "build", "--outdir", dist, source)
    (found,) = dist.glob("*.whl")
    return found


@pytest.mark.slow
def test_a_wheel_has_code_migrations_and_templates_and_no_tests(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {"app", "worker", "nupes_core", "nupes_client", "migrations"} <= tops
    assert not tops & {"tests", "benchmarks", "examples"}
    assert any(name.startswith("app/reports/templates/") for name in names)
    assert sum(name.startswith("migrations/versions/0") for name in names) == len(
        list((REPOSITORY / "migrations" / "versions").glob("0*.py"))
    )


@pytest.mark.slow
def test_a_bare_install_is_light_and_its_help_is_quick(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", wheel)
    sizes: dict[str, tuple[int, int]] = json.loads(run(python, "-c", SIZES))
    assert not {"torch", "fastapi", "sqlalchemy", "numpy"} & set(sizes)
    light, compiled = (sum(pair[part] for name, pair in sizes.items() if name not in TOOLS) for part in (0, 1))
    assert light < LIGHT_BYTES, sizes
    assert compiled < LIGHT_COMPILED_BYTES, sizes
    nupes = tmp_path / "venv" / "bin" / "nupes"
    run(nupes, "--help")  # compiles what pip did not
    took = []
    for _ in range(5):
        began = time.monotonic()
        assert "quantize" in run(nupes, "--help")
        took.append(time.monotonic() - began)
    assert min(took) < 1
