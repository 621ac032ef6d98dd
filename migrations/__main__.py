"""`python -m migrations "what changes"`: write the revision that leads from the newest to the tables as they are."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from alembic import command

from app.db.migrate import alembic_config, upgrade
from app.db.session import Database
from migrations import HEAD


def main() -> None:
    """Compare on a throwaway SQLite database. Read the result, and set `migrations.HEAD`."""
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder) / 'head.db'}"
        upgrade(url)
        database = Database(url)
        with database.engine.connect() as connection:
            command.revision(
                alembic_config(connection), " ".join(sys.argv[1:]), autogenerate=True, rev_id=f"{int(HEAD) + 1:04}"
            )
        database.dispose()


if __name__ == "__main__":
    main()
