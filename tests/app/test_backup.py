"""A running service is copied, and the copy serves what the original had (docs/backup.md)."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from app.backup import BLOBS, SECRET, Copied, backup
from app.db.migrate import upgrade
from app.db.session import Database
from app.db.tables import ModelFile
from app.main import create_app
from app.settings import Settings
from app.storage import open_store
from tests.app.api import make_tenant
from tests.app.jobrows import add_model
from tests.stack import as_environment

CONTENT = b"weights of a model" * 1000


@pytest.fixture
def settings(make_settings: Callable[..., Settings]) -> Settings:
    """The embedded service."""
    settings = make_settings()
    upgrade(settings.resolved_database_url)
    return settings


def test_a_copy_of_a_running_service_serves_what_the_original_had(settings: Settings, tmp_path: Path) -> None:
    blob = open_store(settings).put_stream([CONTENT])
    target = tmp_path / "backup"
    with TestClient(create_app(settings)) as client:
        api = make_tenant(client, ("admin",))
        model_id = add_model(api.database, api.tenant_id)
        with api.database.write() as session:
            session.add(ModelFile(model_id=model_id, path="kept.bin", size=blob.size, sha256=blob.sha256))
        open_store(settings).doom(blob.sha256)  # as if its row had been deleted after the snapshot
        assert backup(settings, target).blobs >= 1
        again = backup(settings, target)
        assert (again.blobs, again.missing) == (0, 0)
    restored = settings.model_copy(update={"data_dir": target})
    assert b"".join(open_store(restored).open(blob.sha256)) == CONTENT
    assert (target / SECRET).stat().st_mode & 0o077 == 0
    with TestClient(create_app(restored)) as client:
        assert client.get(f"/v1/models/{model_id}", headers=api.headers).json()["id"] == model_id


def test_lost_and_damaged_blobs_are_told(settings: Settings, tmp_path: Path) -> None:
    store, database = open_store(settings), Database(settings.resolved_database_url)
    blob = store.put_stream([CONTENT])
    with TestClient(create_app(settings)) as client:
        api = make_tenant(client, ("admin",))
        model_id = add_model(api.database, api.tenant_id)
        with database.write() as session:
            session.add(ModelFile(model_id=model_id, path="lost.bin", size=1, sha256="0" * 64))
            session.add(ModelFile(model_id=model_id, path="kept.bin", size=blob.size, sha256=blob.sha256))
    database.dispose()
    assert backup(settings, tmp_path / "first").missing == 1
    file = settings.data_dir / BLOBS / blob.sha256[:2] / blob.sha256
    file.chmod(0o600)
    file.write_bytes(b"x" + CONTENT[1:])
    done = _run(settings, tmp_path / "second")
    assert done.returncode == 1
    assert "no backup was made" in done.stderr


def test_the_command_makes_a_backup_and_refuses_other_databases(settings: Settings, tmp_path: Path) -> None:
    done = _run(settings, tmp_path / "backup")
    assert (done.returncode, done.stderr) == (0, "")
    assert "0 new blobs" in done.stdout
    with pytest.raises(ValueError, match="NUPES_DATABASE_URL"):
        backup(settings.model_copy(update={"database_url": "postgresql://db/nupes"}), tmp_path / "other")
    assert backup(settings, tmp_path / "backup") == Copied()


def test_asking_for_help_makes_no_backup(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = _run(settings, Path("--help"))
    assert (done.returncode, "usage: python -m app.backup" in done.stdout) == (0, True)
    assert not Path("--help").exists()


def _run(settings: Settings, target: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "app.backup", str(target)],
        env={**os.environ, **as_environment(settings)},
        capture_output=True,
        text=True,
        check=False,
    )
