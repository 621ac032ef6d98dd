"""What Alembic runs: on a connection it is handed, else on the database of the settings (`alembic revision`)."""

from __future__ import annotations

from typing import Any, Literal

from alembic import context
from sqlalchemy import JSON, Connection

from app.db.session import create_database_engine
from app.db.tables import Base
from app.db.types import UtcDateTime
from app.settings import get_settings


def _render(kind: str, item: Any, autogenerate: Any) -> str | Literal[False]:
    """Write our column types as what they are in the database: a revision must not change when our code does."""
    if kind == "type" and isinstance(item, UtcDateTime):
        return "sa.DateTime(timezone=True)"
    if kind == "type" and isinstance(item, JSON):
        autogenerate.imports.add("from sqlalchemy.dialects import postgresql")
        return 'sa.JSON().with_variant(postgresql.JSONB(), "postgresql")'
    return False


def _run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        render_as_batch=True,  # SQLite can change a table only by rebuilding it
        render_item=_render,
        compare_type=True,
        compare_server_default=True,
    )
    with context.begin_transaction():
        context.run_migrations()


_given = context.config.attributes.get("connection")
if _given is not None:
    _run(_given)
else:
    _engine = create_database_engine(get_settings().resolved_database_url)
    with _engine.connect() as _connection:
        _run(_connection)
