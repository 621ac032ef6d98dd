"""Blocking calls made from async code: in worker threads, with their signatures kept."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import ParamSpec, TypeVar

import anyio
import anyio.to_thread

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

_END = object()


class Threads:
    """At most so many calls at once; more wait for their turn.

    A call whose task is cancelled is left to end by itself: what it sent has been sent.
    """

    def __init__(self, at_once: int) -> None:
        self._limiter = anyio.CapacityLimiter(at_once)

    def awaited(self, call: Callable[P, R]) -> Callable[P, Awaitable[R]]:
        """Return `call` as a coroutine function."""

        @functools.wraps(call)
        async def run(*args: P.args, **kwargs: P.kwargs) -> R:
            return await self._run(functools.partial(call, *args, **kwargs))

        return run

    def iterated(self, call: Callable[P, Iterator[T]]) -> Callable[P, AsyncIterator[T]]:
        """Return `call`, which makes an iterator that blocks, as one that makes an async iterator."""

        @functools.wraps(call)
        async def run(*args: P.args, **kwargs: P.kwargs) -> AsyncIterator[T]:
            items = iter(call(*args, **kwargs))
            while (item := await self._run(functools.partial(next, items, _END))) is not _END:
                yield item

        return run

    async def _run(self, call: Callable[[], R]) -> R:
        return await anyio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=self._limiter)
