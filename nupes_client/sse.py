"""Server-sent events (WHATWG HTML, section 9.2): from lines to messages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Message:
    """One event of a stream; `event` and `data` are empty for a heartbeat comment."""

    id: str | None
    event: str
    data: str

    @property
    def is_heartbeat(self) -> bool:
        """Whether it only says that the connection lives."""
        return not self.data


def messages(lines: Iterable[str]) -> Iterator[Message]:
    """Group `lines` (without their ends) into messages; a comment line comes out at once as a heartbeat.

    An event cut off before its closing blank line is dropped, as the standard demands.
    """
    event_id: str | None = None
    event, data = "", list[str]()
    for line in lines:
        if not line:
            if data:
                yield Message(event_id, event or "message", "\n".join(data))
            event, data = "", []
        elif line.startswith(":"):
            yield Message(event_id, "", "")
        else:
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if name == "data":
                data.append(value)
            elif name == "event":
                event = value
            elif name == "id":
                event_id = value
