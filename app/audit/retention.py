"""Forgetting what is older than it has to be kept. Apart from the services, which need the web framework."""

from __future__ import annotations

from datetime import timedelta

from app.audit import repository as audit
from app.core.clock import now
from app.db.session import Database
from app.settings import Settings
from app.usage import repository as usage

USAGE_DAYS = 400
"""No quota and no view looks further back than a month; a year is for whoever writes bills."""


def forget_old_records(database: Database, settings: Settings) -> tuple[int, int]:
    """Delete audit and usage entries past their time; return how many of each."""
    moment = now()
    with database.write() as session:
        noted = audit.delete_before(session, moment - timedelta(days=settings.audit_retention_days))
        used = usage.delete_before(session, moment - timedelta(days=USAGE_DAYS))
    return noted, used
