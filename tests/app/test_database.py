"""Connections to a server that ends them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import text, update
from sqlalchemy.exc import DBAPIError, OperationalError

from app.db import session as sessions
from app.db.session import Database
from app.db.tables import Tenant
from app.settings import Settings
from tests.app.jobrows import add_tenant


@pytest.fixture
def server(make_settings: Callable[..., Settings], postgres_url: str) -> Database:
    return Database(make_settings(database_url=postgres_url).resolved_database_url)


def end_idle_connections(database: Database) -> None:
    """As a restart of the server would."""
    for connection in [database.engine.connect() for _ in range(3)]:
        connection.close()
    other = Database(database.engine.url.render_as_string(hide_password=False))
    ended = text(
        "SELECT pg_terminate_backend(pid, 30000) FROM pg_stat_activity WHERE datname = current_database() "
        "AND pid <> pg_backend_pid()"
    )
    with other.read() as session:
        session.execute(ended)
    other.dispose()


def test_connections_that_died_while_they_lay_idle_cost_no_request(
    server: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "TRUSTED_S", 0.0)
    end_idle_connections(server)
    for _ in range(4):
        with server.read() as session:
            assert session.scalar(text("SELECT 1")) == 1


def test_connections_that_died_right_after_use_cost_one_request(
    server: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "TRUSTED_S", 3600.0)
    end_idle_connections(server)
    failed = 0
    for _ in range(6):
        try:
            with server.read() as session:
                assert session.scalar(text("SELECT 1")) == 1
        except OperationalError:
            failed += 1
    assert failed <= 1


def test_a_glance_sees_what_is_committed_and_leaves_no_transaction_open(server: Database) -> None:
    with server.glance() as session:
        assert session.scalar(text("SELECT count(*) FROM tenants")) == 0
        backend = session.scalar(text("SELECT pg_backend_pid()"))
        with server.read() as other:
            state = other.scalar(text("SELECT state FROM pg_stat_activity WHERE pid = :pid"), {"pid": backend})
    assert state == "idle"


def test_a_client_that_falls_silent_in_a_transaction_loses_its_locks_to_those_who_wait(
    make_settings: Callable[..., Settings], postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "IDLE_IN_TRANSACTION_MS", 300)
    database = Database(make_settings(database_url=postgres_url).resolved_database_url)
    tenant_id = add_tenant(database)
    rename = update(Tenant).where(Tenant.id == tenant_id)

    def fall_silent() -> None:
        with database.write() as silent:
            silent.execute(rename.values(name="silent"))
            with database.write() as other:
                other.execute(rename.values(name="other"))
            silent.execute(rename.values(name="silent again"))

    with pytest.raises(DBAPIError):
        fall_silent()
    with database.read() as session:
        assert session.get_one(Tenant, tenant_id).name == "other"
    database.dispose()


def test_nobody_waits_for_a_row_for_ever(
    make_settings: Callable[..., Settings], postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "BUSY_TIMEOUT_MS", 200)
    database = Database(make_settings(database_url=postgres_url).resolved_database_url)
    tenant_id = add_tenant(database)
    rename = update(Tenant).where(Tenant.id == tenant_id)
    with database.write() as busy:
        busy.execute(rename.values(name="busy"))
        with pytest.raises(OperationalError, match="lock timeout"), database.write() as other:
            other.execute(rename.values(name="other"))
    database.dispose()
