"""One process at a time for work that is everybody's.

A courtesy that saves work, no lock: what is done under a lease must do no harm when two do it.
"""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import update
from sqlalchemy.exc import IntegrityError

from app.core.clock import now
from app.db.session import Database
from app.db.tables import Lease


def take(database: Database, name: str, owner: str, seconds: float) -> bool:
    """Take or renew a lease; False while somebody else has it. Not giving it back spaces the work out."""
    moment = now()
    until = moment + timedelta(seconds=seconds)
    free = (Lease.name == name) & ((Lease.until < moment) | (Lease.owner == owner))
    try:
        with database.write() as session:
            taken = session.connection().execute(update(Lease).where(free).values(owner=owner, until=until)).rowcount
            if not taken and session.get(Lease, name) is None:
                session.add(Lease(name=name, owner=owner, until=until))
                taken = 1
    except IntegrityError:  # somebody else made the row
        return False
    return taken == 1
