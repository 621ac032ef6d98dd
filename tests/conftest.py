"""Fixtures every test package shares: databases, brokers, settings, assets.

`database_url` and `broker_url` run each test that asks for them on both lanes: SQLite and PostgreSQL, folders and
Redis.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from app.db.migrate import upgrade
from app.settings import Settings
from tests.databases import PostgresPool, fresh_database
from tests.servers import postgres_server, redis_server

# Before torch is loaded: test processes share the cores, and OpenMP threads that spin while they wait slow all down.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

pytest_plugins = ["tests.budget"]

REPOSITORY = Path(__file__).resolve().parents[1]
BOOKLM = REPOSITORY / "examples" / "booklm"


@pytest.fixture(autouse=True)
def _no_settings_from_the_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n.startswith("NUPES_") and n != "NUPES_ASSETS" and "TEST" not in n]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def booklm() -> Path:
    """The bundled 5.87 M parameter Llama."""
    return BOOKLM


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of real models and texts; tests that ask for it carry the marker `deep`."""
    folder = os.environ.get("NUPES_ASSETS")
    if not folder or not Path(folder).is_dir():
        pytest.skip("deep test: set NUPES_ASSETS to the folder with the real models and texts")
    return Path(folder)


@pytest.fixture(scope="session")
def postgres_admin_url() -> Iterator[str]:
    """A PostgreSQL where databases can be created."""
    with postgres_server() as url:
        yield url


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A Redis; use key names of your own (`settings.queue_prefix`), never flush it."""
    with redis_server() as url:
        yield url


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file to copy."""
    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def postgres_pool(postgres_admin_url: str) -> Iterator[PostgresPool]:
    """Migrated PostgreSQL databases."""
    with fresh_database(postgres_admin_url, "nupes_test_template") as template:
        upgrade(template)
        with closing(PostgresPool(postgres_admin_url, template)) as pool:
            yield pool


@pytest.fixture
def sqlite_url(sqlite_template: Path, tmp_path: Path) -> str:
    """A fresh migrated SQLite database."""
    return _copy_sqlite(sqlite_template, tmp_path)


@pytest.fixture
def postgres_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """An empty migrated PostgreSQL database."""
    pool: PostgresPool = request.getfixturevalue("postgres_pool")
    with pool.database() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """A fresh migrated database, once per kind."""
    lanes = {"sqlite": "sqlite_url", "postgresql": "postgres_url"}
    return str(request.getfixturevalue(lanes[request.param]))


@pytest.fixture(params=["filesystem", "redis"])
def broker_url(request: pytest.FixtureRequest) -> str:
    """A broker, once per kind; empty means the embedded default in the data folder."""
    return str(request.getfixturevalue("redis_url")) if request.param == "redis" else ""


@pytest.fixture
def make_settings(tmp_path: Path) -> Callable[..., Settings]:
    """Build settings with a data folder and queue names of their own."""

    def build(**overrides: object) -> Settings:
        data_dir = tmp_path / "data"
        data_dir.mkdir(mode=0o700, exist_ok=True)
        defaults = {"data_dir": data_dir, "queue_prefix": f"nupes-test-{secrets.token_hex(4)}.", "log_json": False}
        return Settings.model_validate({**defaults, **overrides})

    return build


@pytest.fixture
def settings(make_settings: Callable[..., Settings], database_url: str) -> Settings:
    """Settings on a fresh database (both kinds) and the filesystem broker."""
    return make_settings(database_url=database_url)


@pytest.fixture(params=["embedded", "production"])
def stack_settings(request: pytest.FixtureRequest, make_settings: Callable[..., Settings]) -> Settings:
    """Settings of a whole stack: SQLite + folders, or PostgreSQL + Redis."""
    if request.param == "embedded":
        return make_settings(database_url=request.getfixturevalue("sqlite_url"))
    return make_settings(
        database_url=request.getfixturevalue("postgres_url"), broker_url=request.getfixturevalue("redis_url")
    )


def _copy_sqlite(template: Path, folder: Path) -> str:
    target = folder / "nupes.db"
    shutil.copy(template, target)
    return f"sqlite:///{target}"
