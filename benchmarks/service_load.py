"""The clients of `service.py`, in a process of their own so that they share no interpreter with what they measure.

    python benchmarks/service_load.py < wish.json

`{"kind": "requests", …}` sends prepared requests over connections that stay open, each as soon as the one before it was
answered; `{"kind": "watch", …}` holds event streams open. Prints one JSON object.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

END = b"\r\n\r\n"
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
EVENT = re.compile(rb"(?:^|\n)id: (\d+)\n")
PATIENCE_S = 120.0


class Caller(asyncio.Protocol):
    """One connection: a request, its answer, the next request."""

    def __init__(self, requests: Iterator[bytes], until: float, note: Callable[[bytes, float], None]) -> None:
        self._requests, self._until, self._note = requests, until, note
        self._buffer = bytearray()
        self._sent = 0.0
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the first request."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._send()

    def data_received(self, data: bytes) -> None:
        """Note an answer once it is whole."""
        self._buffer += data
        head = self._buffer.find(END)
        if head < 0:
            return
        length = LENGTH.search(self._buffer, 0, head + 2)
        if len(self._buffer) < head + len(END) + (int(length[1]) if length else 0):
            return
        self._note(bytes(self._buffer), time.perf_counter() - self._sent)
        self._buffer.clear()
        self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail, unless it was we who closed."""
        if not self.done.done():
            self.done.set_exception(ConnectionError(f"the service hung up: {exc}"))

    def _send(self) -> None:
        request = next(self._requests, None) if time.monotonic() < self._until else None
        if request is None:
            if not self.done.done():
                self.done.set_result(None)
            self._transport.close()
            return
        self._sent = time.perf_counter()
        self._transport.write(request)


class Watcher(asyncio.Protocol):
    """One event stream; notes when each event arrives."""

    def __init__(self, request: bytes, note: Callable[[int], None]) -> None:
        self._request, self._note = request, note
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the first request."""
        assert isinstance(transport, asyncio.Transport)
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Note the events in it."""
        text = self._rest + data
        end = 0
        for match in EVENT.finditer(text):
            self._note(int(match[1]))
            end = match.end()
        self._rest = text[max(end, len(text) - 64) :]


async def send_requests(wish: dict[str, Any]) -> dict[str, Any]:
    """Latencies and statuses of as many requests as went through in the time, or of a given number."""
    texts = [text.encode() for text in wish["requests"]]
    total = wish.get("count") or sys.maxsize
    requests = itertools.islice(itertools.cycle(texts), total)
    seconds: list[float] = []
    statuses: Counter[int] = Counter()
    samples: dict[int, str] = {}

    def note(answer: bytes, took: float) -> None:
        status = int(answer[9:12])
        seconds.append(took)
        statuses[status] += 1
        samples.setdefault(status, answer.decode())

    loop = asyncio.get_running_loop()
    started = time.monotonic()
    callers = []
    for _ in range(wish["connections"]):
        _, caller = await loop.create_connection(
            lambda: Caller(requests, started + wish["seconds"], note), "127.0.0.1", wish["port"]
        )
        callers.append(caller.done)
    await asyncio.gather(*callers)
    wall = time.monotonic() - started
    return {"wall_s": wall, "latencies_s": seconds, "statuses": dict(statuses), "samples": samples}


async def watch(wish: dict[str, Any]) -> dict[str, Any]:
    """When each event number reached each stream, on the monotonic clock, which processes share."""
    arrivals: dict[int, list[float]] = {}
    news = asyncio.Event()

    def note(seq: int) -> None:
        arrivals.setdefault(seq, []).append(time.monotonic())
        news.set()

    async def reached(seq: int) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while len(arrivals.get(seq, ())) < wish["connections"]:
                news.clear()
                await news.wait()

    loop = asyncio.get_running_loop()
    started = time.monotonic()
    for _ in range(wish["connections"]):
        await loop.create_connection(lambda: Watcher(wish["request"].encode(), note), "127.0.0.1", wish["port"])
    await reached(wish["first"])
    print(json.dumps({"connected_s": time.monotonic() - started}), flush=True)
    for seq in range(wish["first"] + 1, wish["last"] + 1):
        await reached(seq)
        print(
            json.dumps(
                {"seq": seq, "all": max(arrivals[seq]), "median": sorted(arrivals[seq])[len(arrivals[seq]) // 2]}
            ),
            flush=True,
        )
    return {}


KINDS = {"requests": send_requests, "watch": watch}


def main() -> None:
    wish = json.load(sys.stdin)
    answer = asyncio.run(KINDS[wish["kind"]](wish))
    print(json.dumps({**answer, "cpu_s": time.process_time()}), flush=True)


if __name__ == "__main__":
    main()
