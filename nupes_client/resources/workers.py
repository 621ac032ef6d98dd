"""Workers and what waits for them."""

from __future__ import annotations

from collections.abc import Iterator

from nupes_client.resources.paging import every
from nupes_client.schemas.operations import QueueInfo, WorkerInfo
from nupes_client.transport import Transport


class Workers:
    """`/v1/workers` and `/v1/queues`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self) -> Iterator[WorkerInfo]:
        """Yield the workers that report in, those seen last first."""
        return every(self._transport, "/v1/workers", WorkerInfo)

    def queues(self) -> Iterator[QueueInfo]:
        """Yield what waits, by device class."""
        return every(self._transport, "/v1/queues", QueueInfo)
