"""Waiting for jobs to change: one poller per process serves every long-poll and event stream.

A poll is one small query over the jobs that somebody watches, plus one for the new events of those that changed. A
watcher costs a coroutine: no thread and no database connection while it waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import TypeVar

import anyio
import anyio.to_thread
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from app.db.session import Database
from app.jobs import repository
from app.jobs.repository import JobState
from app.jobs.views import ends_job, event_view
from nupes_client.schemas.jobs import JobEvent

T = TypeVar("T")

POLL_S = 0.25
RECENT_EVENTS = 256
"""Kept per watched job; a watcher that is further behind reads the database."""

BATCH = 200
READERS = 4
"""Threads for what watchers read on their own: events when they are far behind."""

_log = logging.getLogger(__name__)


class _Topic:
    """What the watchers of one job share."""

    def __init__(self) -> None:
        self.watchers = 0
        self.state: JobState | None = None
        self.gone = False
        self.recent: deque[JobEvent] = deque(maxlen=RECENT_EVENTS)
        self._changed = asyncio.Event()

    @property
    def last_seq(self) -> int:
        return self.state.event_seq if self.state else 0

    def turn(self) -> asyncio.Event:
        """The event that is set by the next change; take it before looking at the state."""
        return self._changed

    def since(self, seq: int) -> list[JobEvent] | None:
        """Events above `seq`; None when only the database has them all."""
        if seq >= self.last_seq:
            return []
        if self.recent and self.recent[0].seq <= seq + 1:
            return [event for event in self.recent if event.seq > seq]
        return None

    def ended(self, seq: int) -> bool:
        """Whether the job is over and `seq` was its last event."""
        return self.state is not None and self.state.status.is_terminal and seq >= self.last_seq

    def publish(self, state: JobState | None, events: list[JobEvent]) -> None:
        if state is not None and state == self.state:
            return
        self.recent.extend(events)
        self.state, self.gone = state, state is None
        self._changed.set()
        self._changed = asyncio.Event()


class JobWatcher:
    """The poller and its topics. Belongs to one event loop; polls only while somebody watches."""

    def __init__(self, database: Database, *, poll_s: float = POLL_S) -> None:
        self._database = database
        self._poll_s = poll_s
        self._topics: dict[str, _Topic] = {}
        self._poller: asyncio.Task[None] | None = None
        self._poll_now = asyncio.Event()
        self._readers = anyio.CapacityLimiter(READERS)
        self._poll_thread = anyio.CapacityLimiter(1)

    @property
    def watching(self) -> int:
        """How many watchers there are."""
        return sum(topic.watchers for topic in self._topics.values())

    async def wait(self, job_id: str, arrived: Callable[[JobState], bool], timeout_s: float) -> None:
        """Return when the state of the job satisfies `arrived`, the job is gone, or the time is over."""
        with self._watch(job_id) as topic, contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                turn = topic.turn()
                while not topic.gone and not (topic.state and arrived(topic.state)):
                    await turn.wait()
                    turn = topic.turn()

    async def events(self, job_id: str, after: int) -> AsyncIterator[JobEvent]:
        """Yield the events above number `after`, old and new, up to the one that ends the job."""
        seq = after
        with self._watch(job_id) as topic:
            while not topic.gone:
                turn = topic.turn()
                for event in await self._news(topic, job_id, seq):
                    yield event
                    if ends_job(event):
                        return
                    seq = event.seq
                if topic.ended(seq):
                    return
                if topic.state is None or seq >= topic.last_seq:
                    await turn.wait()

    async def _news(self, topic: _Topic, job_id: str, seq: int) -> list[JobEvent]:
        if topic.state is None:
            return []
        batch = topic.since(seq)
        return await self._read(partial(_events, job_id=job_id, after=seq), self._readers) if batch is None else batch

    @contextlib.contextmanager
    def _watch(self, job_id: str) -> Iterator[_Topic]:
        if job_id not in self._topics:
            self._topics[job_id] = _Topic()
            self._poll_now.set()
        topic = self._topics[job_id]
        topic.watchers += 1
        if self._poller is None or self._poller.done():
            self._poller = asyncio.get_running_loop().create_task(self._poll())
        try:
            yield topic
        finally:
            topic.watchers -= 1
            if not topic.watchers:
                self._topics.pop(job_id, None)

    async def _poll(self) -> None:
        while self._topics:
            self._poll_now.clear()
            try:
                await self._poll_once()
            except SQLAlchemyError:
                _log.warning("watched jobs could not be read; trying again", exc_info=True)
                await asyncio.sleep(self._poll_s)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._poll_now.wait(), self._poll_s)

    async def _poll_once(self) -> None:
        watched = list(self._topics)
        for start in range(0, len(watched), BATCH):
            job_ids = watched[start : start + BATCH]
            known = {job_id: topic.state for job_id in job_ids if (topic := self._topics.get(job_id))}
            states, events = await self._read(partial(_changes, known=known), self._poll_thread)
            for job_id in known:
                if topic := self._topics.get(job_id):
                    topic.publish(states.get(job_id), events.get(job_id, []))

    async def _read(self, query: Callable[[Session], T], limiter: anyio.CapacityLimiter) -> T:
        def run() -> T:
            with self._database.read() as session:
                return query(session)

        return await anyio.to_thread.run_sync(run, limiter=limiter)


def _events(session: Session, job_id: str, after: int) -> list[JobEvent]:
    return [event_view(event) for event in repository.events(session, job_id, after, BATCH)]


def _changes(
    session: Session, known: dict[str, JobState | None]
) -> tuple[dict[str, JobState], dict[str, list[JobEvent]]]:
    """Return the states now and the new events; of jobs not known before, the latest events."""
    states = repository.states(session, known)
    behind = {
        job_id: before.event_seq if before else max(0, states[job_id].event_seq - RECENT_EVENTS)
        for job_id, before in known.items()
        if job_id in states and (before is None or states[job_id].event_seq > before.event_seq)
    }
    events: dict[str, list[JobEvent]] = {}
    for event in repository.events_since(session, behind) if behind else ():
        if event.seq <= states[event.job_id].event_seq:  # a later one belongs to the next poll's state
            events.setdefault(event.job_id, []).append(event_view(event))
    return states, events
