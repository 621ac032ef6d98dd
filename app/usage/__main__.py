"""`python -m app.usage`: the limits of tenants, for the operator of the service."""

from __future__ import annotations

import argparse
import sys

from pydantic import ValidationError
from sqlalchemy.orm import Session

from app.audit.service import record_command
from app.core.quotas import quotas_of
from app.db.session import Database
from app.keys.repository import tenant_named
from app.settings import Settings, get_settings
from app.usage import repository
from nupes_client.schemas.audit import AuditAction
from nupes_client.schemas.usage import Quotas


def main() -> None:
    """Show the limits of a tenant, or change them."""
    wish = _parser().parse_args()
    settings = get_settings()
    database = Database(settings.resolved_database_url)
    with database.write() as session:
        sys.stdout.write(_carry_out(session, settings, wish))
    database.dispose()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m app.usage", description=__doc__)
    parser.add_argument("tenant", nargs="?", help="by name; without it all tenants are shown")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=NUMBER", help="`none` is no limit")
    parser.add_argument("--reset", action="append", default=[], metavar="NAME", help="back to the service's own limit")
    return parser


def _carry_out(session: Session, settings: Settings, wish: argparse.Namespace) -> str:
    if wish.tenant is None:
        return "".join(_line(settings, row.name, row.quotas) for row in repository.tenants(session))
    tenant = tenant_named(session, wish.tenant)
    if tenant is None:
        sys.exit(f"there is no tenant {wish.tenant!r}; without a name all are shown")
    if wish.set or wish.reset:
        changed = _changed(tenant.quotas or {}, wish.set, wish.reset)
        repository.set_quotas(session, tenant.id, changed)
        record_command(session, tenant.id, AuditAction.QUOTAS_CHANGED, tenant.id)
    return _line(settings, tenant.name, tenant.quotas)


def _changed(quotas: dict[str, int | None], given: list[str], reset: list[str]) -> dict[str, int | None] | None:
    pairs = dict(pair.partition("=")[::2] for pair in given)
    wanted = {name: None if text == "none" else text for name, text in pairs.items()}
    try:
        checked = Quotas.model_validate(wanted).model_dump(exclude_unset=True)
    except ValidationError as error:
        first = error.errors()[0]
        sys.exit(f"{'.'.join(map(str, first['loc']))}: {first['msg']}; limits are {', '.join(Quotas.model_fields)}")
    return {name: value for name, value in {**quotas, **checked}.items() if name not in reset} or None


def _line(settings: Settings, name: str, overrides: dict[str, int | None] | None) -> str:
    limits = quotas_of(settings, overrides).model_dump()
    marks = {key: "*" if key in (overrides or {}) else "" for key in limits}
    shown = (f"{key}={'none' if value is None else value}{marks[key]}" for key, value in limits.items())
    return f"{name}: {' '.join(shown)}\n"


if __name__ == "__main__":
    main()
