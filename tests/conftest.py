"""Fixtures every test package shares: databases, brokers, settings, assets.

`database_url` and `broker_url` run each test that asks for them on both lanes: SQLite and PostgreSQL, folders and
Redis.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from app.db.migrate import upgrade
from app.settings import Settings
from tests.servers import postgres_server, redis_server

# Before torch is loaded: test processes share the cores, and OpenMP threads that spin while they wait slow all down.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

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
def postgres_template(postgres_admin_url: str) -> Iterator[str]:
    """The name of a migrated PostgreSQL database to copy."""
    name = f"nupes_test_template_{secrets.token_hex(4)}"
    _admin(postgres_admin_url, "CREATE DATABASE {}", name)
    try:
        upgrade(_with_database(postgres_admin_url, name))
        yield name
    finally:
        _admin(postgres_admin_url, "DROP DATABASE {} WITH (FORCE)", name)


@pytest.fixture
def sqlite_url(sqlite_template: Path, tmp_path: Path) -> str:
    """A fresh migrated SQLite database."""
    return _copy_sqlite(sqlite_template, tmp_path)


@pytest.fixture
def postgres_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """A fresh migrated PostgreSQL database."""
    admin_url = request.getfixturevalue("postgres_admin_url")
    template = request.getfixturevalue("postgres_template")
    name = f"nupes_test_{secrets.token_hex(6)}"
    _admin(admin_url, "CREATE DATABASE {} TEMPLATE {}", name, template)
    try:
        yield _with_database(admin_url, name)
    finally:
        _admin(admin_url, "DROP DATABASE {} WITH (FORCE)", name)


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


def _with_database(url: str, name: str) -> str:
    base, _, query = url.partition("?")
    return base.rsplit("/", 1)[0] + f"/{name}" + (f"?{query}" if query else "")


def _admin(url: str, statement: str, *names: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))
