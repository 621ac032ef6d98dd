"""What live workers could take: the largest memory of each device class."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta

from sqlalchemy.orm import Session

from app.core.clock import now
from app.db.tables import Worker
from app.workers import repository
from nupes_client.schemas.specs import Device

SEEN = timedelta(seconds=60)
"""A worker that did not report in for this long is not counted on."""

_PREFERENCE: dict[bool, Sequence[str]] = {True: ("gpu", "cpu"), False: ("cpu", "gpu")}
"""For jobs that learn on data, and for all others."""


class Capacity:
    """Device class -> memory of its largest live worker; one that does not say is given a chance with everything."""

    def __init__(self, workers: Iterable[Worker]) -> None:
        self.largest: dict[str, int | None] = {}
        for worker in workers:
            known = self.largest.get(worker.device_class, 0)
            both = known is not None and worker.memory_bytes is not None
            self.largest[worker.device_class] = max(known or 0, worker.memory_bytes or 0) if both else None

    @classmethod
    def of(cls, session: Session) -> Capacity:
        """Look at the workers that reported in lately and are not being drained."""
        return cls(repository.taking_since(session, now() - SEEN))

    def fits(self, device_class: str, memory_bytes: int | None) -> bool:
        """Whether a live worker of the class has the memory; None needs none."""
        if device_class not in self.largest:
            return False
        largest = self.largest[device_class]
        return memory_bytes is None or largest is None or memory_bytes <= largest

    def fitting(self, memory_bytes: int | None, device: Device = "auto") -> tuple[str, ...]:
        """Return the classes, of those the user allows, that have a worker with the memory; sorted."""
        allowed = sorted(self.allowed(device))
        return tuple(each for each in allowed if self.fits(each, memory_bytes))

    def allowed(self, device: Device) -> set[str]:
        """Return the live classes that the user allows."""
        return {name for name in self.largest if device in {"auto", name}}


def count_taking(session: Session, device_class: str) -> int:
    """Return how many live workers of a class take jobs."""
    workers = repository.taking_since(session, now() - SEEN)
    return sum(worker.device_class == device_class for worker in workers)


def choose_class(device: Device, fitting: Sequence[str], *, learns: bool) -> str:
    """Return the class whose queue a job goes to.

    Args:
        device: what the user asked for; a class is kept as it is.
        fitting: classes with a live worker that has the memory; may be empty.
        learns: the job learns on data, which is much faster with an accelerator.
    """
    if device != "auto":
        return device
    return next((each for each in (*_PREFERENCE[learns], *fitting) if each in fitting), "cpu")
