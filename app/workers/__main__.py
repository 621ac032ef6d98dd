"""`python -m app.workers`: drain workers, for the operator of the service: they serve all tenants."""

from __future__ import annotations

import argparse
import sys

from app.core.clock import now
from app.db.session import Database
from app.settings import get_settings
from app.workers import repository
from app.workers.service import status_of

_DRAINING = {"drain": True, "undrain": False}


def main() -> None:
    """Show the workers, or have one finish its job and take no other, or take jobs again."""
    parser = argparse.ArgumentParser(prog="python -m app.workers", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("list", help="every worker that ever reported in, those seen last first")
    actions.add_parser("drain", help="finish the job and take no other").add_argument("worker")
    actions.add_parser("undrain", help="take jobs again").add_argument("worker")
    wish = parser.parse_args()
    settings = get_settings()
    database = Database(settings.resolved_database_url)
    if wish.action in _DRAINING:
        with database.write() as session:
            if repository.set_draining(session, wish.worker, draining=_DRAINING[wish.action]) is None:
                sys.exit(f"there is no worker {wish.worker!r}; `list` shows all")
    with database.read() as session:
        for worker in repository.all_workers(session):
            sys.stdout.write(f"{worker.id} {worker.device_class} {status_of(worker, settings, now())}\n")
    database.dispose()


if __name__ == "__main__":
    main()
