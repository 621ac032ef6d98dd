"""Curves of a job: what its worker measured on the way, and as many points of it as a picture needs."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from operator import itemgetter

from sqlalchemy.orm import Session

from app.db.tables import JobMetric
from app.jobs import repository
from app.jobs.transitions import Fence, hold
from nupes_client.schemas.jobs import JobMetrics, MetricPoint, MetricSeries

MIN_POINTS = 4
"""First, last, lowest and highest."""

MAX_NAME = 255


@dataclass(frozen=True)
class Point:
    """One point of a curve.

    Attributes:
        series: name of the curve.
        step: grows within a series.
        value: None where it was no finite number, which no database compares.
    """

    series: str
    step: int
    value: float | None

    @classmethod
    def of(cls, series: str, step: int, value: float | None) -> Point:
        """Build one that can be stored from what was measured."""
        finite = value is not None and math.isfinite(value)
        return cls(series[:MAX_NAME].replace("\0", ""), step, value if finite else None)


def write_points(session: Session, job_id: str, fence: Fence, points: Sequence[Point]) -> None:
    """Write points of a job that is held.

    A series goes on where these points begin: what an earlier attempt, or an earlier try to write the same points, left
    from there on is replaced.

    Raises:
        StaleFenceError: the job has ended or belongs to another worker.
    """
    hold(session, job_id, fence)
    by_place = {(point.series, point.step): point for point in points}
    starts: dict[str, int] = {}
    for series, step in by_place:
        starts[series] = min(step, starts.get(series, step))
    repository.cut_metrics(session, job_id, starts)
    session.add_all(
        JobMetric(job_id=job_id, series=point.series, step=point.step, value=point.value) for point in by_place.values()
    )
    session.flush()


def read_metrics(session: Session, job_id: str, series: Sequence[str], max_points: int) -> JobMetrics:
    """Return the curves of a job; the caller has checked the tenant.

    Args:
        session: an open session.
        job_id: which job.
        series: only these; all when empty.
        max_points: of each series; at least `MIN_POINTS`.
    """
    found = groupby(repository.metrics(session, job_id, series), key=itemgetter(0))
    curves = {name: [MetricPoint(step=step, value=value) for _, step, value in rows] for name, rows in found}
    return JobMetrics(
        data=[
            MetricSeries(name=name, count=len(curves[name]), points=thin_out(curves[name], max_points))
            for name in sorted(curves, key=_natural)
        ]
    )


def thin_out(points: Sequence[MetricPoint], max_points: int) -> list[MetricPoint]:
    """Return at most `max_points` of a curve: first, last, and lowest and highest of each stretch in between.

    The extremes of the whole curve are extremes of their stretch, so they stay. `max_points` is `MIN_POINTS` at least.
    """
    if len(points) <= max_points:
        return list(points)
    stretches = (max_points - 2) // 2
    bounds = [1 + (len(points) - 2) * index // stretches for index in range(stretches + 1)]
    kept = {0, len(points) - 1}
    for start, end in pairwise(bounds):
        kept.update(_extremes(points, start, end))
    return [points[index] for index in sorted(kept)]


def _extremes(points: Sequence[MetricPoint], start: int, end: int) -> Iterator[int]:
    """Yield the places of lowest and highest value in `points[start:end]`; the first place where none is a number."""
    finite = [(value, index) for index in range(start, end) if (value := points[index].value) is not None]
    yield min(finite)[1] if finite else start
    yield max(finite)[1] if finite else start


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key by which `layers.2` comes before `layers.10`."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
