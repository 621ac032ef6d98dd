"""Engine and sessions: one code path for SQLite and PostgreSQL.

Sessions are synchronous: FastAPI runs endpoints in its thread pool and the workers share the same repositories
(docs/decisions/001).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import InvalidatePoolError
from sqlalchemy.orm import Session
from sqlalchemy.pool import ConnectionPoolEntry

BUSY_TIMEOUT_MS = 30_000
IDLE_IN_TRANSACTION_MS = 15_000
"""A server ends a client that falls silent in the middle of a transaction: stopped, or its machine gone. Whoever waits
for the rows it has locked, the reaper of its job among them, goes on. Our transactions wait for nothing else.
"""
TRUSTED_S = 1.0
"""A connection to a server that was used this recently is taken to live."""

_IDLE_SINCE = "idle_since"
_AFTER_COMMIT = "after_commit"


class Database:
    """An engine and the two kinds of session over it."""

    def __init__(self, url: str) -> None:
        self.engine = create_database_engine(url)
        self._writers = self.engine.execution_options(nupes_write=True)
        is_sqlite = self.engine.dialect.name == "sqlite"  # where BEGIN costs nothing, and would be sent all the same
        self._single = self.engine if is_sqlite else self.engine.execution_options(isolation_level="AUTOCOMMIT")

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session that only reads; sees one snapshot, never waits for writers."""
        with Session(self.engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def glance(self) -> Iterator[Session]:
        """A session for a query, or for several that need not see the same snapshot.

        No transaction is around them, which would cost two more trips to a server.
        """
        with Session(self._single, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that writes: commits on leaving, rolls back on an exception.

        On SQLite it begins IMMEDIATE, so it waits for the write lock at the start (up to 30 s) and can not fail
        half-way because another writer was faster. A server ends a wait for a row after the same time. What
        `after_commit` noted runs last.
        """
        with Session(self._writers, expire_on_commit=False) as session:
            with session.begin():
                yield session
            for act in session.info.pop(_AFTER_COMMIT, ()):
                act()

    def dispose(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def after_commit(session: Session, act: Callable[[], None]) -> None:
    """Run `act` once the transaction of a `Database.write` session is committed; never if it is rolled back.

    For what others may see only when the rows are there, such as a wake-up. The commit stands whatever `act` does, so
    it must handle its own errors.
    """
    session.info.setdefault(_AFTER_COMMIT, []).append(act)


def create_database_engine(url: str) -> Engine:
    """Create the engine; for SQLite also the folder, WAL mode and explicit BEGIN."""
    if make_url(url).get_backend_name() != "sqlite":
        # The connection used last comes first: its statements are prepared, and the others may end.
        engine = create_engine(url, pool_use_lifo=True, pool_size=20, max_overflow=20)
        event.listen(engine, "connect", _limit_waits)
        event.listen(engine, "checkin", _note_time)
        event.listen(engine, "checkout", partial(_try_idle, engine))
        return engine
    database = make_url(url).database
    if database and database != ":memory:":
        Path(database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_MS / 1000}, pool_size=20, max_overflow=20)
    event.listen(engine, "connect", _configure_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _limit_waits(connection: Any, _record: object) -> None:
    """Statements, not start-up options, which some connection poolers refuse."""
    limits = {"idle_in_transaction_session_timeout": IDLE_IN_TRANSACTION_MS, "lock_timeout": BUSY_TIMEOUT_MS}
    with connection.cursor() as cursor:
        for name, milliseconds in limits.items():
            cursor.execute(f"SET {name} = {milliseconds}")
    connection.commit()


def _note_time(_connection: object, record: ConnectionPoolEntry) -> None:
    record.info[_IDLE_SINCE] = time.monotonic()


def _try_idle(engine: Engine, connection: DBAPIConnection, record: ConnectionPoolEntry, _proxy: object) -> None:
    """Try a connection that lay idle: the server may have been restarted since. One just used is not asked each time.

    Raises:
        InvalidatePoolError: it is dead, and so are the others; the pool makes a new one.
    """
    idle_since = record.info.get(_IDLE_SINCE)
    if idle_since is None or time.monotonic() - idle_since < TRUSTED_S:
        return
    try:
        engine.dialect.do_ping(connection)
    except engine.dialect.loaded_dbapi.Error as error:
        raise InvalidatePoolError from error


def _configure_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # the driver must not begin transactions on its own
    for pragma in ("journal_mode=WAL", f"busy_timeout={BUSY_TIMEOUT_MS}", "foreign_keys=ON", "synchronous=NORMAL"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    writing = connection.get_execution_options().get("nupes_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")
