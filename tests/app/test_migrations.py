from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text

from app.db.migrate import alembic_config, upgrade
from app.db.session import Database
from app.db.tables import Base
from migrations import HEAD


@contextmanager
def connected(url: str) -> Iterator[Connection]:
    database = Database(url.replace("postgresql://", "postgresql+psycopg://"))
    try:
        with database.engine.connect() as connection:
            yield connection
    finally:
        database.dispose()


def test_migrations_and_tables_agree(database_url: str) -> None:
    with connected(database_url) as connection:
        options = {"compare_type": True, "compare_server_default": True}
        differences = compare_metadata(MigrationContext.configure(connection, opts=options), Base.metadata)
    assert differences == []


def test_there_is_one_lineage_and_its_head_is_the_one_readiness_expects() -> None:
    assert ScriptDirectory.from_config(alembic_config()).get_heads() == [HEAD]


def test_every_constraint_has_a_name_that_a_migration_can_use(database_url: str) -> None:
    with connected(database_url) as connection:
        inspector = inspect(connection)
        for table in Base.metadata.tables:
            keys = [inspector.get_pk_constraint(table), *inspector.get_foreign_keys(table)]
            assert all(key["name"] for key in [*keys, *inspector.get_unique_constraints(table)]), table


def test_migrating_twice_changes_nothing(database_url: str) -> None:
    upgrade(database_url)
    with connected(database_url) as connection:
        assert connection.scalar(text("SELECT version_num FROM alembic_version")) == HEAD


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_processes_that_migrate_at_once_wait_for_each_other(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = f"sqlite:///{tmp_path / 'new.db'}" if kind == "sqlite" else request.getfixturevalue("postgres_url")
    if kind == "postgresql":
        with connected(url) as connection:
            Base.metadata.drop_all(connection)
            connection.execute(text("DROP TABLE alembic_version"))
            connection.commit()
    failures: list[Exception] = []

    def migrate() -> None:
        try:
            upgrade(url)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=migrate) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with connected(url) as connection:
        assert connection.scalar(text("SELECT version_num FROM alembic_version")) == HEAD


def test_the_first_migration_can_be_taken_back(database_url: str) -> None:
    from alembic import command

    with connected(database_url) as connection:
        command.downgrade(alembic_config(connection), "base")
        connection.commit()
        assert set(inspect(connection).get_table_names()) == {"alembic_version"}
