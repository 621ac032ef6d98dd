"""Reading single jobs, which clients that wait do all the time: what many ask at once is one query."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

from sqlalchemy.orm import Session

from app.core.gathering import Gatherer
from app.core.problems import NotFoundError
from app.db.session import Database
from app.db.tables import Job
from app.jobs import repository
from app.jobs.repository import JobState, Owned

T = TypeVar("T")


class JobReader:
    """Jobs as they are now, of the tenant that asks: the others' do not exist."""

    def __init__(self, database: Database) -> None:
        self._states = _gatherer(database, repository.states_of_tenants, "job-states")
        self._jobs = _gatherer(database, repository.of_tenants, "jobs")

    async def state(self, tenant_id: str, job_id: str) -> JobState:
        """Return as much of a job as tells whether it changed.

        Raises:
            NotFoundError: there is none.
        """
        return _found(await self._states.ask((tenant_id, job_id)), job_id)

    async def job(self, tenant_id: str, job_id: str) -> Job:
        """Return a job, as one of perhaps several who look at it: it is not to be changed.

        Raises:
            NotFoundError: there is none.
        """
        return _found(await self._jobs.ask((tenant_id, job_id)), job_id)

    def close(self) -> None:
        """End the threads."""
        self._states.close()
        self._jobs.close()


def _gatherer(
    database: Database, query: Callable[[Session, Collection[Owned]], dict[Owned, T]], name: str
) -> Gatherer[Owned, T | None]:
    def read(wanted: Sequence[Owned]) -> list[T | None]:
        with database.glance() as session:
            found = query(session, wanted)
        return [found.get(each) for each in wanted]

    return Gatherer(read, name)


def _found(found: T | None, job_id: str) -> T:
    if found is None:
        raise NotFoundError("job", job_id)
    return found
