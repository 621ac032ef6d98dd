"""What job endpoints ask for beyond `app.core.deps`."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import Depends, Query
from pydantic import AwareDatetime, TypeAdapter, ValidationError
from starlette.requests import Request

from app.core.deps import Database_, Settings_, Store
from app.core.problems import ValidationProblem
from app.jobs.repository import JobFilter
from app.jobs.submission import Context
from app.jobs.watch import JobWatcher
from nupes_client.schemas.base import Label, LabelValue
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


def _context(database: Database_, settings: Settings_, store: Store) -> Context:
    return Context(database, settings, store)


def _filter(
    request: Request,
    status: Annotated[list[JobStatus], Query(description="One of these; repeat the parameter.")] = [],  # noqa: B006
    model_id: Annotated[str | None, Query(max_length=40)] = None,
    created_after: Annotated[AwareDatetime | None, Query(description="RFC 3339, with its zone.")] = None,
    verdict: Annotated[Literal["passed", "failed"] | None, Query()] = None,
) -> JobFilter:
    return JobFilter(status, model_id, _labels(request), created_after, verdict)


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


Watcher = Annotated[JobWatcher, Depends(_watcher)]
SubmissionContext = Annotated[Context, Depends(_context)]
Filter = Annotated[JobFilter, Depends(_filter)]
