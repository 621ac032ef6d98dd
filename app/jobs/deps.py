"""What job endpoints ask for beyond `app.core.deps`."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import Depends, Query
from pydantic import TypeAdapter, ValidationError
from starlette.requests import Request

from app.core.deps import Database_, Settings_, Store
from app.core.problems import ValidationProblem
from app.jobs.reading import JobReader
from app.jobs.repository import JobFilter
from app.jobs.submission import Context
from app.jobs.watch import JobWatcher
from app.queue.outbox import WakeUps
from nupes_client.schemas.base import Instant, Label, LabelValue
from nupes_client.schemas.jobs import JobStatus

_LABEL = "label."
_LABELS = TypeAdapter(dict[Label, LabelValue])


async def _watcher(request: Request) -> JobWatcher:
    """The one of this process; made on first use, in the event loop that it belongs to."""
    state = request.app.state
    if not isinstance(getattr(state, "job_watcher", None), JobWatcher):
        state.job_watcher = JobWatcher(state.database)
    watcher: JobWatcher = state.job_watcher
    return watcher


async def _reader(request: Request) -> JobReader:
    reader: JobReader = request.app.state.job_reader
    return reader


async def _wake_ups(request: Request) -> WakeUps:
    wake_ups: WakeUps = request.app.state.wake_ups
    return wake_ups


async def _context(request: Request, database: Database_, settings: Settings_, store: Store) -> Context:
    return Context(database, settings, store, request.app.state.job_writer)


async def _filter(
    request: Request,
    status: Annotated[list[JobStatus], Query(description="One of these; repeat the parameter.")] = [],  # noqa: B006
    model_id: Annotated[str | None, Query(max_length=40)] = None,
    created_after: Annotated[Instant | None, Query(description="RFC 3339, with its zone.")] = None,
    created_before: Annotated[Instant | None, Query(description="RFC 3339, with its zone.")] = None,
    verdict: Annotated[Literal["passed", "failed"] | None, Query()] = None,
    name: Annotated[str | None, Query(min_length=1, max_length=200, description="Exactly this name.")] = None,
) -> JobFilter:
    return JobFilter(status, model_id, _labels(request), created_after, created_before, verdict, name)


async def compared(
    ids: Annotated[list[str], Query(description="2 to 8 job ids; repeat the parameter, or put commas between them.")],
) -> list[str]:
    """Ids to compare.

    Raises:
        ValidationProblem: too few, too many, or one of them twice.
    """
    wanted = [job_id for value in ids for job_id in value.split(",") if job_id]
    if not 2 <= len(set(wanted)) == len(wanted) <= MOST_COMPARED:
        raise ValidationProblem(
            f"{len(wanted)} ids, {len(set(wanted))} of them different, were given to compare",
            code="invalid_ids",
            pointer="/query/ids",
            hint=f"Give 2 to {MOST_COMPARED} different job ids.",
        )
    return wanted


def _labels(request: Request) -> dict[str, str]:
    """`label.k=v` for each label that must be there; the names are free, so they are in no signature."""
    found = {key.removeprefix(_LABEL): value for key, value in request.query_params.items() if key.startswith(_LABEL)}
    try:
        return _LABELS.validate_python(found)
    except ValidationError as error:
        name = error.errors()[0]["loc"][0]
        raise ValidationProblem(
            f"no job can have the label {name!r}: {error.errors()[0]['msg']}",
            code="invalid_label",
            pointer=f"/query/{_LABEL}{name}",
        ) from error


MOST_COMPARED = 8
ComparedIds = Annotated[list[str], Depends(compared)]
Reader = Annotated[JobReader, Depends(_reader)]
Wakes = Annotated[WakeUps, Depends(_wake_ups)]
Watcher = Annotated[JobWatcher, Depends(_watcher)]
SubmissionContext = Annotated[Context, Depends(_context)]
Filter = Annotated[JobFilter, Depends(_filter)]
