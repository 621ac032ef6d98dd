"""What a job did when, from the events of its last attempt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from nupes_client.schemas.jobs import Job, JobEvent, JobPhase, JobStatus

EVENT_TYPES = ("status", "phase")
_ORDER = list(JobPhase)


@dataclass(frozen=True)
class Stage:
    """A phase: `state` is `done now failed skipped` or `ahead`; `seconds` None where it was not entered."""

    phase: JobPhase
    state: str
    seconds: float | None


def stages(job: Job, events: Sequence[JobEvent], moment: datetime) -> list[Stage]:
    """Every phase, in order; `events` are those of `EVENT_TYPES`, oldest first."""
    entered = _entered(events)
    ends = [*(start for _, start in entered[1:]), job.finished_at or moment]
    spent: dict[JobPhase, float] = {}
    for (phase, start), end in zip(entered, ends, strict=False):
        spent[phase] = spent.get(phase, 0.0) + (end - start).total_seconds()
    last = entered[-1][0] if entered else None
    shown = [phase for phase in JobPhase if phase is not JobPhase.PUSHING or job.config.push_to_hub]
    return [Stage(phase, _state(job, phase, spent, last), spent.get(phase)) for phase in shown]


def _entered(events: Sequence[JobEvent]) -> list[tuple[JobPhase, datetime]]:
    """Phases of the last attempt and when each began."""
    begins = [index for index, event in enumerate(events) if event.data.get("to") == JobStatus.RUNNING.value]
    own = events[begins[-1] :] if begins else events
    return [(JobPhase(event.data["phase"]), event.created_at) for event in own if event.type == "phase"]


def _state(job: Job, phase: JobPhase, spent: dict[JobPhase, float], last: JobPhase | None) -> str:
    if phase not in spent:
        return "skipped" if last and _ORDER.index(phase) < _ORDER.index(last) else "ahead"
    if phase is not last or job.status is JobStatus.SUCCEEDED:
        return "done"
    return "failed" if job.is_terminal else "now"
