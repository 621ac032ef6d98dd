"""The event stream of a job (WHATWG HTML §9.2): `id:` is the number of the event in the database."""

from __future__ import annotations

from collections.abc import AsyncIterator

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.responses import Response

from app.core.problems import ValidationProblem
from app.db.tables import Job
from app.jobs.watch import JobWatcher
from nupes_client.schemas.jobs import JobStatus

HEARTBEAT_S = 15
SEND_TIMEOUT_S = 30
"""A client that takes nothing for this long is dropped; it comes back with `Last-Event-ID`."""


def resume_point(last_event_id: str | None, after: int) -> int:
    """Return the number of the last event the client has: `Last-Event-ID`, which a reconnect sends, wins over `after`.

    Raises:
        ValidationProblem: the header is no number.
    """
    if not last_event_id:
        return after
    if not (last_event_id.isascii() and last_event_id.isdigit() and len(last_event_id) < 19):
        raise ValidationProblem(
            f"the Last-Event-ID {last_event_id[:64]!r} is no event number",
            pointer="/header/Last-Event-ID",
            hint="Send the `id` of the last event you received.",
        )
    return int(last_event_id)


def event_stream(watcher: JobWatcher, job: Job, seen: int, *, reconnects: bool) -> Response:
    """The stream of what comes after event `seen`, closed after the one that ends the job.

    A client that reconnects after the end gets 204, which makes an `EventSource` stop.
    """
    if reconnects and JobStatus(job.status).is_terminal and seen >= job.event_seq:
        return Response(status_code=204)
    return EventSourceResponse(
        _messages(watcher, job.id, seen),
        ping=HEARTBEAT_S,
        ping_message_factory=lambda: ServerSentEvent(comment="heartbeat"),
        send_timeout=SEND_TIMEOUT_S,
        sep="\n",
    )


async def _messages(watcher: JobWatcher, job_id: str, seen: int) -> AsyncIterator[ServerSentEvent]:
    async for event in watcher.events(job_id, seen):
        yield ServerSentEvent(id=str(event.seq), event=event.type, data=event.model_dump_json(), sep="\n")
