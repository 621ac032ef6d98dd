"""`nupes doctor`: finds what is missing, and says what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.db.migrate import upgrade
from nupes_client.cli.application import run
from tests.client.conftest import RunningService
from tests.servers import free_port


def diagnose(capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, dict[str, str]]]:
    code = run(["doctor", "--json"])
    return code, {each["name"]: each for each in json.loads(capsys.readouterr().out)["findings"]}


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with nothing but what a test puts there."""
    for name in ("NUPES_DATABASE_URL", "NUPES_BROKER_URL", "NUPES_STORAGE_URL", "NUPES_URL", "NUPES_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NUPES_DATA_DIR", str(tmp_path))
    return tmp_path


def test_with_a_service_everything_is_looked_at(
    here: Path, service: RunningService, key: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    upgrade(f"sqlite:///{here / 'nupes.db'}")
    (here / "blobs").mkdir()
    monkeypatch.setenv("NUPES_URL", service.url)
    monkeypatch.setenv("NUPES_API_KEY", key)
    code, found = diagnose(capsys)
    assert set(found) == {
        "python",
        "disk",
        "database",
        "storage",
        "broker",
        "workers",
        "devices",
        "memory",
        "isolation",
        "service",
    }
    assert {name for name, each in found.items() if each["status"] == "problem"} == set()
    assert "Start one" in found["workers"]["hint"]
    assert "torch" in found["devices"]["detail"]
    assert found["database"]["detail"] == f"sqlite:///{here / 'nupes.db'}"
    assert all(each["detail"] for each in found.values())
    assert code == 0


def test_without_any_service_it_says_how_to_start_one(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = diagnose(capsys)
    assert code == 6
    assert "nupes up" in found["database"]["detail"]
    assert found["service"]["status"] == "problem"
    assert "nupes up" in found["service"]["hint"]


def test_a_database_that_is_away_is_a_problem_with_a_hint(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NUPES_DATABASE_URL", f"postgresql://nobody@127.0.0.1:{free_port()}/none")
    code, found = diagnose(capsys)
    assert code == 6
    assert (found["database"]["status"], "NUPES_DATABASE_URL" in found["database"]["hint"]) == ("problem", True)


def test_a_setting_that_makes_no_sense_is_named(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NUPES_PORT", "many")
    code, found = diagnose(capsys)
    assert code == 6
    assert found["settings"]["detail"].startswith("NUPES_PORT: ")


def test_a_setting_that_is_misspelt_is_told_and_what_others_read_is_not(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("NUPES_DATABSE_URL", "NUPES_URL", "NUPES_TEST_REDIS_URL"):
        monkeypatch.setenv(name, "x")
    _, found = diagnose(capsys)
    assert found["settings"]["detail"] == "NUPES_DATABSE_URL is not known, so it does nothing"
    assert found["settings"]["hint"] == "Rename it to NUPES_DATABASE_URL."


def test_for_people_it_is_a_line_each(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor"]) == 6
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("ok    python")
    assert any(line.startswith("BAD   service") for line in lines)
    assert any(line.strip().startswith("->") for line in lines)
