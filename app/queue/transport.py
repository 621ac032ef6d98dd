"""Kombu on folders, for one machine: no message is lost or seen twice while processes write and read at once.

A queue is a folder. A message is written under a temporary name and renamed into the queue, so a reader never sees
half of it; a reader takes it by renaming it away, which only one can do. Names begin with nanoseconds of equal width:
their order is the order of arrival. What can not be read is put aside and never seen again. A message taken by a
process that is then killed is gone: the worker's look at the table finds its job.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from queue import Empty
from typing import Any

from kombu.exceptions import ChannelError
from kombu.transport import virtual
from kombu.utils.json import dumps, loads

logger = logging.getLogger(__name__)

POLLING_INTERVAL_S = 0.1
STALE_S = 3600.0
"""Half-written and half-read files of killed processes are removed after this."""

_SUFFIX = ".msg"
_SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]*")


class QueueFolder:
    """The messages of one queue, oldest first."""

    def __init__(self, root: Path, queue: str) -> None:
        if not _SAFE_NAME.fullmatch(queue):
            raise ChannelError(f"queue name {queue!r} is no folder name")
        self.path = root / queue
        self._tmp, self._taken, self.quarantine = (self.path / name for name in ("tmp", "taken", "quarantine"))
        for folder in (self._tmp, self._taken, self.quarantine):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._seen: deque[str] = deque()
        self._counter = itertools.count()
        self._remove_stale()

    def put(self, content: bytes) -> None:
        """Add a message, whole or not at all."""
        name = f"{time.time_ns():020d}-{os.getpid()}-{next(self._counter)}{_SUFFIX}"
        temporary = self._tmp / name
        temporary.write_bytes(content)
        temporary.rename(self.path / name)

    def take(self) -> Any:
        """Remove the oldest readable message and return it decoded.

        Raises:
            Empty: there is none.
        """
        for name in self._names():
            with suppress(FileNotFoundError):  # another reader was faster
                return self._decode(self._claim(name))
        raise Empty

    def size(self) -> int:
        """Number of messages waiting."""
        return len(self._listing())

    def purge(self) -> int:
        """Remove all messages; return how many."""
        removed = 0
        for name in self._listing():
            with suppress(FileNotFoundError):
                (self.path / name).unlink()
                removed += 1
        return removed

    def _names(self) -> Iterator[str]:
        """Names to try: the rest of the last listing, then one new listing."""
        for refresh in (False, True):
            if refresh:
                self._seen.extend(self._listing())
            while self._seen:
                yield self._seen.popleft()

    def _listing(self) -> list[str]:
        return sorted(name for name in os.listdir(self.path) if name.endswith(_SUFFIX))  # noqa: PTH208 (ten times a second)

    def _claim(self, name: str) -> Path:
        return (self.path / name).rename(self._taken / name)

    def _decode(self, taken: Path) -> Any:
        try:
            message = loads(taken.read_bytes())
            message["properties"]["delivery_tag"]
        except (ValueError, KeyError, TypeError, OSError) as error:
            logger.warning("unreadable message %s put aside: %s", taken.name, type(error).__name__)
            taken.rename(self.quarantine / taken.name)
            raise FileNotFoundError(taken) from error
        taken.unlink()
        return message

    def _remove_stale(self) -> None:
        limit = time.time() - STALE_S
        for file in itertools.chain(self._tmp.iterdir(), self._taken.iterdir()):
            with suppress(FileNotFoundError):
                if file.stat().st_mtime < limit:
                    file.unlink()


class Channel(virtual.Channel):  # type: ignore[misc]
    """Puts messages into folders and takes them out again."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._folders: dict[str, QueueFolder] = {}

    def _folder(self, queue: str) -> QueueFolder:
        if queue not in self._folders:
            self._folders[queue] = QueueFolder(Path(self.connection.client.transport_options["queue_dir"]), queue)
        return self._folders[queue]

    def _new_queue(self, queue: str, **_: Any) -> None:
        self._folder(queue)

    def _put(self, queue: str, message: dict[str, Any], **_: Any) -> None:
        self._folder(queue).put(dumps(message).encode())

    def _get(self, queue: str, timeout: float | None = None) -> Any:
        return self._folder(queue).take()

    def _size(self, queue: str) -> int:
        return self._folder(queue).size()

    def _purge(self, queue: str) -> int:
        return self._folder(queue).purge()


class Transport(virtual.Transport):  # type: ignore[misc]
    """Scheme `nupesfs`; the folder is the transport option `queue_dir`."""

    Channel = Channel
    driver_type = "filesystem"
    driver_name = "nupesfs"
    polling_interval = POLLING_INTERVAL_S
    default_port = 0
    connection_errors = (*virtual.Transport.connection_errors, OSError)

    @property
    def default_connection_params(self) -> dict[str, Any]:
        """There is no host to connect to."""
        return {}

    def driver_version(self) -> str:
        """Version of this transport."""
        return "1"
