"""Small questions to the database that many requests ask at once, answered many at a time."""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

Q = TypeVar("Q")
A = TypeVar("A")

BATCH = 100

_Outcome = tuple["_Asked[Any]", Any, Exception | None]


@dataclass(frozen=True)
class _Asked(Generic[Q]):
    """A question, and who waits for the answer: a coroutine in its event loop, or a thread."""

    question: Q
    loop: asyncio.AbstractEventLoop | None
    future: asyncio.Future[Any] | Future[Any]


class Gatherer(Generic[Q, A]):
    """Answers at once the questions that came while the answers before them were on their way.

    Nothing is kept: an answer was read after its question came. A lone question waits for nobody, and the more come,
    the less each of them costs: one query, one step to a thread and back for all.
    """

    def __init__(
        self, answer: Callable[[Sequence[Q]], Sequence[A]], name: str, *, batch: int = BATCH, repeatable: bool = True
    ) -> None:
        """Gather.

        Args:
            answer: gives the answers in the order of the questions; runs in a thread, one batch at a time. If it raises
                for several, it is called again for each of them: what it did must be undone then.
            name: of that thread.
            batch: the most questions at once.
            repeatable: whether it may answer again when it is not known how far it came, because the connection to the
                database was lost on the way.
        """
        self._answer = answer
        self._batch = batch
        self._repeatable = repeatable
        self._thread = ThreadPoolExecutor(1, name)
        self._lock = threading.Lock()
        self._waiting: list[_Asked[Q]] = []
        self._busy = False

    async def ask(self, question: Q) -> A:
        """Return the answer, or raise what answering this question alone raises."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        self._add(_Asked(question, loop, future))
        answer: A = await future
        return answer

    def ask_and_wait(self, question: Q) -> A:
        """The same for a thread that may wait."""
        future: Future[A] = Future()
        self._add(_Asked(question, None, future))
        return future.result()

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()

    def _add(self, asked: _Asked[Q]) -> None:
        with self._lock:
            self._waiting.append(asked)
            start, self._busy = not self._busy, True
        if start:
            self._thread.submit(self._work)

    def _work(self) -> None:
        while batch := self._next():
            outcomes = self._outcomes(batch)
            by_loop: defaultdict[asyncio.AbstractEventLoop | None, list[_Outcome]] = defaultdict(list)
            for outcome in outcomes:
                by_loop[outcome[0].loop].append(outcome)
            _tell(by_loop.pop(None, ()))
            for loop, told in by_loop.items():
                assert loop is not None
                with suppress(RuntimeError):  # the loop was closed: nobody waits any more
                    loop.call_soon_threadsafe(_tell, told)

    def _next(self) -> list[_Asked[Q]]:
        with self._lock:
            batch, self._waiting = self._waiting[: self._batch], self._waiting[self._batch :]
            self._busy = bool(batch)
            return batch

    def _outcomes(self, batch: list[_Asked[Q]], *, again: bool = True) -> list[_Outcome]:
        try:
            answers = self._answer([asked.question for asked in batch])
            return [(asked, answer, None) for asked, answer in zip(batch, answers, strict=True)]
        except (OperationalError, PoolTimeoutError) as error:
            # The database is to blame, not one of the questions: to ask each alone would only take longer.
            if again and self._repeatable and isinstance(error, OperationalError) and error.connection_invalidated:
                return self._outcomes(batch, again=False)
            return [(asked, None, error) for asked in batch]
        except Exception as error:  # noqa: BLE001 (whoever asked gets it)
            if len(batch) == 1:
                return [(batch[0], None, error)]
        # One of them may be what the database refuses: nobody answers for another's question.
        return [outcome for asked in batch for outcome in self._outcomes([asked])]


def _tell(outcomes: Iterable[_Outcome]) -> None:
    for asked, answer, error in outcomes:
        if asked.future.done():  # whoever asked has gone
            continue
        if error is None:
            asked.future.set_result(answer)
        else:
            asked.future.set_exception(error)
