"""Phases of a job and their share of its time, for one fraction over the whole job."""

from __future__ import annotations

from itertools import accumulate

from nupes_client.schemas.jobs import JobPhase

_WEIGHTS: dict[JobPhase, float] = {
    JobPhase.FETCHING: 5,
    JobPhase.VALIDATING: 1,
    JobPhase.PLANNING: 1,
    JobPhase.CALIBRATING: 0,
    JobPhase.QUANTIZING: 58,
    JobPhase.EVALUATING: 25,
    JobPhase.PACKAGING: 2,
    JobPhase.VERIFYING: 5,
    JobPhase.PUBLISHING: 3,
    JobPhase.PUSHING: 0,
}
"""Of a job that looks at the weights alone, in percent."""

MEASURING_WEIGHT = 40.0
"""Running the model on data once, to see its activations."""

PUSHING_WEIGHT = 10.0
"""Sending the result to a hub."""

LEARNING_WEIGHT = 500.0
"""Learning the codes takes several times as long as all else together."""


class Timeline:
    """Where the phases of one job lie between its start, 0, and its end, 1."""

    def __init__(self, calibrating: float = 0.0, pushing: float = 0.0) -> None:
        weights = {**_WEIGHTS, JobPhase.CALIBRATING: calibrating, JobPhase.PUSHING: pushing}
        total = sum(weights.values())
        ends = [end / total for end in accumulate(weights.values())]
        self._spans = dict(zip(weights, zip([0.0, *ends[:-1]], ends, strict=True), strict=True))

    @classmethod
    def of(cls, *, data_driven: bool, calibrated: bool, pushed: bool = False) -> Timeline:
        """Return that of a job which learns codes on data, which only looks at data, or which needs none."""
        calibrating = LEARNING_WEIGHT if data_driven else MEASURING_WEIGHT if calibrated else 0.0
        return cls(calibrating, PUSHING_WEIGHT if pushed else 0.0)

    def follows(self, phase: JobPhase, later: JobPhase) -> bool:
        """Whether a phase lies behind another."""
        order = list(self._spans)
        return order.index(later) > order.index(phase)

    def fraction(self, phase: JobPhase, current: int, total: int) -> float:
        """Return how far the job is, in [0, 1], when `phase` has done `current` of `total`."""
        within = min(max(current / total, 0.0), 1.0) if total > 0 else 0.0
        start, end = self._spans[phase]
        return (1 - within) * start + within * end
