"""Bring a database to the schema of this release."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Engine, event, make_url

import migrations
from app.db.session import create_database_engine
from app.settings import get_settings

if TYPE_CHECKING:
    from alembic.config import Config
    from sqlalchemy import Connection

_LOCK = 0x6E75706573  # any number, the same for all who migrate


def upgrade(url: str, revision: str = "head") -> None:
    """Run the migrations that are missing, all in one transaction. Safe to call from several processes at once.

    Args:
        url: a SQLAlchemy URL as in `Settings.resolved_database_url`; `postgresql://` means psycopg 3.
        revision: where to stop.
    """
    from alembic import command

    engine = _migration_engine(url)
    try:
        with engine.connect() as connection, connection.begin():
            _wait_for_others(connection)
            command.upgrade(alembic_config(connection), revision)
    finally:
        engine.dispose()


def alembic_config(connection: Connection | None = None) -> Config:
    """The Alembic configuration: there is no ini file, so that an installed wheel migrates like a checkout."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    config.set_main_option("file_template", "%%(rev)s_%%(slug)s")
    config.attributes["connection"] = connection
    return config


def _migration_engine(url: str) -> Engine:
    engine = create_database_engine(url.replace("postgresql://", "postgresql+psycopg://", 1))
    if engine.dialect.name == "sqlite":
        # Changing a table on SQLite rebuilds it; with foreign keys on, dropping the old one would delete its children.
        event.listen(engine, "connect", lambda raw, _: raw.execute("PRAGMA foreign_keys=OFF"))
    return engine.execution_options(nupes_write=True)


def _wait_for_others(connection: Connection) -> None:
    """On SQLite BEGIN IMMEDIATE has waited already."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")


def main() -> None:
    """Migrate the database of the settings and say what came of it."""
    argparse.ArgumentParser(prog="python -m app.db.migrate", description=__doc__).parse_args()
    url = get_settings().resolved_database_url
    before = _revision(url)
    upgrade(url)
    after = _revision(url)
    done = f"the schema is at {after} already" if before == after else f"schema {before or 'none'} -> {after}"
    sys.stdout.write(f"{make_url(url).render_as_string()}: {done}\n")


def _revision(url: str) -> str | None:
    from alembic.runtime.migration import MigrationContext

    engine = _migration_engine(url)
    try:
        with engine.connect() as connection:
            return MigrationContext.configure(connection).get_current_revision()
    finally:
        engine.dispose()


if __name__ == "__main__":
    main()
