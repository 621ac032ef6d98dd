"""A raw body on its way in: counted, gathered into large pieces, handed to a writer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect

from app.core.problems import ProblemError, TooLargeError, ValidationProblem

PIECE_BYTES = 1 << 20
"""Gathered before a thread is asked to write: a thread per network packet would cost more than the disk."""


def check_headers(headers: Headers, size: int) -> None:
    """Refuse by its headers a body that can not be the announced file.

    Raises:
        TooLargeError: longer than announced.
        ValidationProblem: shorter than announced.
        ProblemError: 415, compressed.
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
    length = headers.get("content-length", str(size))
    if length.isdigit() and int(length) != size:
        raise _wrong_size(int(length), size)


async def receive(chunks: AsyncIterator[bytes], size: int, write: Callable[[bytes], object]) -> None:
    """Hand exactly `size` bytes to `write`, which runs in a thread.

    Raises:
        TooLargeError: more bytes came.
        ValidationProblem: fewer came, or the client went away.
    """
    gathered = bytearray()
    received = 0
    try:
        async for chunk in chunks:
            received += len(chunk)
            if received > size:
                raise _wrong_size(received, size)
            gathered += chunk
            if len(gathered) >= PIECE_BYTES:
                await run_in_threadpool(write, bytes(gathered))
                gathered.clear()
    except ClientDisconnect:
        raise _wrong_size(received, size) from None
    if received < size:
        raise _wrong_size(received, size)
    await run_in_threadpool(write, bytes(gathered))


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
