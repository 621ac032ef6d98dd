"""A raw body on its way in: counted, gathered into large pieces, handed to a writer while the next piece arrives."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from enum import Enum

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect

from app.core.problems import ProblemError, TooLargeError, ValidationProblem

PIECE_BYTES = 1 << 20
"""Gathered before a thread is asked to write: a thread per network packet would cost more than the disk."""

Write = Callable[[bytearray], object]


class Ending(Enum):
    """How a body ended."""

    WHOLE = "whole"
    CUT_OFF = "cut off"
    STALLED = "stalled"
    TOO_LONG = "too long"


@dataclass(frozen=True)
class Received:
    """How many bytes of a body came, and how it ended."""

    size: int
    ending: Ending


async def pump(chunks: AsyncIterator[bytes], most: int, write: Write, stall_s: float) -> Received:
    """Hand the bytes of a body to `write`, which runs in a thread, while the next ones arrive.

    Args:
        chunks: the body.
        most: bytes that may come; what comes behind them is not written.
        write: called with pieces, one after the other.
        stall_s: how long to wait for a further byte.

    Raises: what `write` raises; nothing is being written any more then.
    """
    writer = _Writer(write)
    received, ending = 0, Ending.WHOLE
    try:
        while chunk := await _next(chunks, stall_s):
            received += len(chunk)
            if received > most:
                ending = Ending.TOO_LONG
                break
            await writer.take(chunk)
    except ClientDisconnect:
        ending = Ending.CUT_OFF
    except _StalledError:
        ending = Ending.STALLED
    finally:
        await writer.settle()
    await writer.flush()
    return Received(received, ending)


async def receive(chunks: AsyncIterator[bytes], size: int, write: Write, stall_s: float) -> None:
    """Hand exactly `size` bytes to `write`, which runs in a thread.

    Raises:
        TooLargeError: more bytes came.
        ValidationProblem: fewer came, or the client went away.
        ProblemError: 408, no more bytes came for `stall_s` seconds.
    """
    received = await pump(chunks, size, write, stall_s)
    if received.ending is Ending.STALLED:
        raise stalled(stall_s, "Nothing was kept.")
    if received.size != size:
        raise _wrong_size(received.size, size)


def check_headers(headers: Headers, size: int) -> None:
    """Refuse by its headers a body that can not be the announced file.

    Raises:
        TooLargeError: longer than announced.
        ValidationProblem: shorter than announced.
        ProblemError: 415, compressed.
    """
    check_identity(headers)
    length = headers.get("content-length", str(size))
    if length.isdigit() and int(length) != size:
        raise _wrong_size(int(length), size)


def check_identity(headers: Headers) -> None:
    """Refuse a compressed body.

    Raises:
        ProblemError: 415.
    """
    encoding = headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise ProblemError(
            415,
            "unsupported_media_type",
            "Unsupported media type",
            f"the body has Content-Encoding {encoding!r}",
            hint="Send the bytes of the file as they are.",
        )


def stalled(stall_s: float, kept: str) -> ProblemError:
    """The answer to a client that stopped sending."""
    return ProblemError(
        408,
        "upload_stalled",
        "Request timeout",
        f"no byte came for {stall_s:g} seconds. {kept}",
        hint="Ask with HEAD how far the upload is and send the rest.",
        retryable=True,
        headers={"Connection": "close"},
    )


class _StalledError(Exception):
    """No byte came for too long."""


async def _next(chunks: AsyncIterator[bytes], stall_s: float) -> bytes | None:
    """The next bytes that are not none; None at the end."""
    try:
        async with asyncio.timeout(stall_s):
            async for chunk in chunks:
                if chunk:
                    return chunk
    except TimeoutError:
        raise _StalledError from None
    return None


class _Writer:
    """Writes one piece in a thread while the next is gathered."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self._gathered = bytearray()
        self._running: asyncio.Task[object] | None = None

    async def take(self, chunk: bytes) -> None:
        """Gather; start to write when there is enough."""
        self._gathered += chunk
        if len(self._gathered) >= PIECE_BYTES:
            await self._start()

    async def flush(self) -> None:
        """Write the rest."""
        await self._start()
        await self._finish()

    async def settle(self) -> None:
        """Wait until no thread writes; its failure, if any, comes with the next piece."""
        if self._running is not None:
            await asyncio.wait({self._running})

    async def _start(self) -> None:
        await self._finish()
        piece, self._gathered = self._gathered, bytearray()
        self._running = asyncio.create_task(run_in_threadpool(self._write, piece))

    async def _finish(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            await running


def _wrong_size(received: int, size: int) -> ProblemError:
    if received > size:
        return TooLargeError(
            f"{size} bytes were announced, and more came", hint="Announce an upload of the right size."
        )
    return ValidationProblem(
        f"{received} of the {size} announced bytes came",
        code="upload_incomplete",
        hint="Nothing was kept. Send all bytes again to the same upload.",
    )
