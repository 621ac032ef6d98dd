"""Jobs side by side: what was asked differently, and what came of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy.orm import Session

from app.db.tables import Job
from app.jobs import repository
from app.jobs.cautions import cautions
from app.jobs.views import job_view, layer_view
from nupes_client.schemas.jobs import Job as JobView
from nupes_client.schemas.jobs import Layer
from nupes_client.schemas.reports import ComparedJob, ComparedLayer, Difference, JobComparison


def side_by_side(session: Session, jobs: Sequence[Job]) -> JobComparison:
    """Put jobs side by side, in the order given."""
    views = [job_view(job) for job in jobs]
    return JobComparison(
        jobs=[_head(view) for view in views],
        cautions=cautions(views),
        config=list(_differences([job.config for job in jobs])),
        layers=_layers([_layers_of(session, job) for job in jobs]),
    )


def _head(job: JobView) -> ComparedJob:
    return ComparedJob.model_validate({name: getattr(job, name) for name in ComparedJob.model_fields})


def _differences(values: Sequence[Any], pointer: str = "") -> Iterator[Difference]:
    """Yield the deepest places where the values are not all the same; lists are compared whole."""
    if all(value == values[0] for value in values):
        return
    if not all(isinstance(value, dict) for value in values):
        yield Difference(pointer=pointer, values=list(values))
        return
    for name in dict.fromkeys(name for value in values for name in value):
        escaped = name.replace("~", "~0").replace("/", "~1")
        yield from _differences([value.get(name) for value in values], f"{pointer}/{escaped}")


def _layers_of(session: Session, job: Job) -> dict[str, Layer]:
    return {row.name: layer_view(row) for row in repository.layers(session, job.id, -1, None)}


def _layers(columns: Sequence[dict[str, Layer]]) -> list[ComparedLayer]:
    """All layers of all jobs, in the order of the first that has them."""
    names = dict.fromkeys(name for column in columns for name in column)
    return [ComparedLayer(name=name, layers=[column.get(name) for column in columns]) for name in names]
