"""PostgreSQL databases for tests: made once, emptied between tests.

Making and dropping a database each costs the server a checkpoint, which is seconds where disks are slow; emptying the
few rows of a test costs milliseconds. A database goes back to the pool only while it is as its template was: no test
has changed its schema, and no process of a test is still connected.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg import sql
from sqlalchemy import make_url

from app.db.tables import Base

_SHAPE = """
SELECT md5(string_agg(
    concat_ws(' ', c.relname, c.relkind, a.attname, a.atttypid, a.attnotnull), ',' ORDER BY c.oid, a.attnum))
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
WHERE c.relnamespace = 'public'::regnamespace
"""
_REVISION = "SELECT string_agg(version_num, ',') FROM alembic_version"
LEAVE_S = 0.5
_OTHERS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"


class PostgresPool:
    """Migrated databases of one server.

    Args:
        admin_url: a role that may create databases.
        template_url: a migrated, empty database; nobody may be connected to it.
    """

    def __init__(self, admin_url: str, template_url: str) -> None:
        self._admin_url = admin_url
        self._template = str(make_url(template_url).database)
        self._spare: list[str] = []
        with psycopg.connect(template_url) as connection:
            self._shape = _shape(connection)

    @contextmanager
    def database(self) -> Iterator[str]:
        """Yield the URL of an empty migrated database."""
        name = self._spare.pop() if self._spare else self._made()
        url = with_database(self._admin_url, name)
        try:
            yield url
        finally:
            if self._emptied(url):
                self._spare.append(name)
            else:
                self._drop(name)

    def close(self) -> None:
        """Drop what lies spare."""
        while self._spare:
            self._drop(self._spare.pop())

    def _made(self) -> str:
        name = f"nupes_test_{secrets.token_hex(6)}"
        administer(self._admin_url, "CREATE DATABASE {} TEMPLATE {}", name, self._template)
        return name

    def _emptied(self, url: str) -> bool:
        """Whether it is as new; else nothing was done."""
        with psycopg.connect(url) as connection:
            connection.autocommit = True
            if not _left(connection) or _shape(connection) != self._shape:
                return False
            for table in reversed(Base.metadata.sorted_tables):
                connection.execute(sql.SQL("DELETE FROM {}").format(sql.Identifier(table.name)))
        return True

    def _drop(self, name: str) -> None:
        administer(self._admin_url, "DROP DATABASE {} WITH (FORCE)", name)


@contextmanager
def fresh_database(admin_url: str, prefix: str = "nupes_test") -> Iterator[str]:
    """Yield the URL of an empty database that goes away again, whoever is connected."""
    name = f"{prefix}_{secrets.token_hex(6)}"
    administer(admin_url, "CREATE DATABASE {}", name)
    try:
        yield with_database(admin_url, name)
    finally:
        administer(admin_url, "DROP DATABASE {} WITH (FORCE)", name)


def with_database(url: str, name: str) -> str:
    """The same server, another database."""
    return make_url(url).set(database=name).render_as_string(hide_password=False)


def administer(url: str, statement: str, *names: str) -> None:
    """Run a statement that no transaction may hold; `{}` stands for a name each."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))  # type: ignore[arg-type]


def _shape(connection: psycopg.Connection[tuple[object, ...]]) -> object:
    """Tables, columns and indexes, and the migration that they are said to be at; nothing where a table is gone."""
    try:
        return _value(connection, _SHAPE), _value(connection, _REVISION)
    except psycopg.errors.UndefinedTable:
        return None


def _left(connection: psycopg.Connection[tuple[object, ...]]) -> bool:
    """Whether all others have left; the server needs a moment to see that a connection was closed."""
    deadline = time.monotonic() + LEAVE_S
    while _value(connection, _OTHERS):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def _value(connection: psycopg.Connection[tuple[object, ...]], query: str) -> object:
    row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]
