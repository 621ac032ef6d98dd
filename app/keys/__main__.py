"""`python -m app.keys create`: make a tenant and its first key, where none can be used to ask the service for one."""

from __future__ import annotations

import argparse
import sys
from typing import get_args

from app.audit.service import record_command
from app.core.secret_key import load_pepper
from app.db.session import Database
from app.keys.repository import tenant_names
from app.keys.service import DEFAULT_TENANT, add_key, ensure_tenant
from app.settings import get_settings
from nupes_client.schemas.audit import AuditAction
from nupes_client.schemas.keys import Scope


def main() -> None:
    """Parse the command line, write the key, print its secret alone to standard output: it is shown this once."""
    parser = argparse.ArgumentParser(prog="python -m app.keys", description=__doc__)
    create = parser.add_subparsers(required=True).add_parser("create", help="make a key and print its secret")
    create.add_argument("--tenant", help=f"whose key; made when missing (the first: {DEFAULT_TENANT!r})")
    create.add_argument("--name", required=True, help="what the key is for")
    create.add_argument("--scope", action="append", choices=get_args(Scope), help="repeatable; default: admin")
    wish = parser.parse_args()
    settings = get_settings()
    database = Database(settings.resolved_database_url)
    scopes = wish.scope or ["admin"]
    with database.write() as session:
        known = tenant_names(session)
        if wish.tenant is None and known:
            create.error(f"--tenant NAME is needed: a new one, or one of {', '.join(known)}")
        tenant = ensure_tenant(session, wish.tenant or DEFAULT_TENANT)
        key, secret = add_key(session, load_pepper(settings), tenant.id, wish.name, scopes)
        record_command(session, tenant.id, AuditAction.KEY_CREATED, key.id)
    database.dispose()
    sys.stderr.write(f"key {wish.name!r} of tenant {tenant.name!r}, scopes: {', '.join(scopes)}\n")
    sys.stdout.write(f"{secret}\n")


if __name__ == "__main__":
    main()
