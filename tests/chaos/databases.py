"""A database that somebody else keeps locked."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from sqlalchemy.engine import make_url

from app.settings import Settings

TABLES = "jobs, job_events, outbox, workers, idempotency_keys"


@contextmanager
def locked(settings: Settings) -> Iterator[None]:
    """Nobody writes meanwhile; on PostgreSQL nobody reads these tables either."""
    url = make_url(settings.resolved_database_url)
    if url.get_backend_name() == "sqlite":
        with _locked_sqlite(str(url.database)):
            yield
        return
    with psycopg.connect(url.set(drivername="postgresql").render_as_string(hide_password=False)) as connection:
        connection.execute(f"LOCK TABLE {TABLES} IN ACCESS EXCLUSIVE MODE")
        yield
        connection.rollback()


def can_be_written(settings: Settings) -> bool:
    """Whether a writer gets its turn within seconds; on PostgreSQL nobody waits for all others."""
    url = make_url(settings.resolved_database_url)
    if url.get_backend_name() != "sqlite":
        return True
    connection = sqlite3.connect(str(url.database), timeout=2, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.rollback()
    except sqlite3.OperationalError:
        return False
    finally:
        connection.close()
    return True


@contextmanager
def _locked_sqlite(path: str) -> Iterator[None]:
    connection = sqlite3.connect(path, timeout=60, isolation_level=None)
    try:
        connection.execute("BEGIN EXCLUSIVE")
        yield
    finally:
        connection.rollback()
        connection.close()
