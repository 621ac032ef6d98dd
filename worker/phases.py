"""Phases of a job and their share of its time, for one fraction over the whole job."""

from __future__ import annotations

from nupes_client.schemas.jobs import JobPhase

_ENDS: dict[JobPhase, float] = {
    JobPhase.FETCHING: 0.05,
    JobPhase.VALIDATING: 0.06,
    JobPhase.PLANNING: 0.07,
    JobPhase.CALIBRATING: 0.07,
    JobPhase.QUANTIZING: 0.65,
    JobPhase.EVALUATING: 0.90,
    JobPhase.PACKAGING: 0.92,
    JobPhase.VERIFYING: 0.97,
    JobPhase.PUBLISHING: 1.0,
}
_STARTS = dict(zip(_ENDS, (0.0, *_ENDS.values()), strict=False))


def overall_fraction(phase: JobPhase, current: int, total: int) -> float:
    """Return how far the job is, in [0, 1], when `phase` has done `current` of `total`."""
    within = min(max(current / total, 0.0), 1.0) if total > 0 else 0.0
    return _STARTS[phase] + within * (_ENDS[phase] - _STARTS[phase])
