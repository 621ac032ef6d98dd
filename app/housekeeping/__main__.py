"""`python -m app.housekeeping`: one round now, on the database and the blob store that `NUPES_*` names."""

from __future__ import annotations

import sys

from app.db.session import Database
from app.housekeeping.service import sweep_local, sweep_shared
from app.settings import get_settings
from app.storage import open_store


def main() -> None:
    """Sweep once and say what was found."""
    settings = get_settings()
    database, store = Database(settings.resolved_database_url), open_store(settings)
    sweep_local(database, store, settings)
    swept = sweep_shared(database, store, settings)
    database.dispose()
    sys.stdout.write(
        f"{swept.uploads} uploads expired, artifacts of {swept.jobs} jobs expired, {swept.freed_bytes} bytes freed\n"
    )


if __name__ == "__main__":
    main()
