"""Questions that come while an answer is on its way are answered together; each gets its own answer or error."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence

import pytest
from sqlalchemy.exc import OperationalError

from app.core.gathering import BATCH, Gatherer


class Reader:
    """Doubles numbers, refuses those below zero, keeps what it was asked; waits while `go` is not set."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go, self.asked = threading.Event(), threading.Event()
        self.go.set()

    def __call__(self, questions: Sequence[int]) -> list[int]:
        self.batches.append(list(questions))
        self.asked.set()
        assert self.go.wait(30)
        if min(questions) < 0:
            raise ValueError(f"{min(questions)} is below zero")
        return [2 * question for question in questions]

    async def was_asked(self) -> None:
        assert await asyncio.to_thread(self.asked.wait, 30)


@pytest.fixture
def reader() -> Reader:
    return Reader()


@pytest.fixture
def gatherer(reader: Reader) -> Iterator[Gatherer[int, int]]:
    gatherer = Gatherer(reader, "test")
    yield gatherer
    gatherer.close()


async def ask_behind_the_first(gatherer: Gatherer[int, int], reader: Reader, questions: Sequence[int]) -> list[object]:
    """Ask them all while the answer to another question is awaited."""
    reader.go.clear()
    first = asyncio.create_task(gatherer.ask(0))
    await reader.was_asked()
    others = [asyncio.create_task(gatherer.ask(question)) for question in questions]
    await asyncio.sleep(0)
    reader.go.set()
    done = asyncio.gather(*others, return_exceptions=True)
    assert await first == 0
    return list(await done)


def test_a_lone_question_is_answered_alone(gatherer: Gatherer[int, int], reader: Reader) -> None:
    assert asyncio.run(gatherer.ask(3)) == 6
    assert reader.batches == [[3]]


def test_questions_behind_another_are_answered_together_in_batches(
    gatherer: Gatherer[int, int], reader: Reader
) -> None:
    questions = list(range(1, BATCH + 3))
    answers = asyncio.run(ask_behind_the_first(gatherer, reader, questions))
    assert answers == [2 * question for question in questions]
    assert [len(batch) for batch in reader.batches] == [1, BATCH, 2]


def test_a_question_that_can_not_be_answered_spoils_no_other(gatherer: Gatherer[int, int], reader: Reader) -> None:
    answers = asyncio.run(ask_behind_the_first(gatherer, reader, [1, -2, 3]))
    assert answers[0] == 2
    assert isinstance(answers[1], ValueError)
    assert answers[2] == 6
    assert asyncio.run(gatherer.ask(4)) == 8


def test_who_has_gone_is_not_waited_for(gatherer: Gatherer[int, int], reader: Reader) -> None:
    async def leave() -> int:
        reader.go.clear()
        gone = asyncio.create_task(gatherer.ask(1))
        await reader.was_asked()
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        reader.go.set()
        return await gatherer.ask(2)

    assert asyncio.run(leave()) == 4


def test_event_loops_that_come_and_go_share_it(gatherer: Gatherer[int, int]) -> None:
    found: list[int] = []

    def ask(number: int) -> None:
        found.append(asyncio.run(gatherer.ask(number)))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [2 * number for number in range(20)]


def test_a_thread_can_ask_too(gatherer: Gatherer[int, int]) -> None:
    assert gatherer.ask_and_wait(3) == 6
    with pytest.raises(ValueError, match="below zero"):
        gatherer.ask_and_wait(-1)


def test_a_database_that_is_down_is_asked_once_for_all(reader: Reader) -> None:
    def fail(questions: Sequence[int]) -> list[int]:
        reader(questions)
        raise OperationalError("SELECT 1", {}, Exception("the server does not answer"))

    gatherer = Gatherer(fail, "test")
    with pytest.raises(OperationalError):
        asyncio.run(ask_behind_the_first(gatherer, reader, [1, 2, 3]))
    gatherer.close()
    assert [len(batch) for batch in reader.batches] == [1, 3]


@pytest.mark.parametrize("repeatable", [True, False])
def test_a_connection_that_was_lost_costs_no_answer_unless_it_is_not_known_what_was_done(repeatable: bool) -> None:
    lost = iter([True])

    def answer(questions: Sequence[int]) -> list[int]:
        if next(lost, False):
            raise OperationalError("SELECT 1", {}, Exception("terminated"), connection_invalidated=True)
        return list(questions)

    gatherer = Gatherer(answer, "test", repeatable=repeatable)
    if repeatable:
        assert asyncio.run(gatherer.ask(1)) == 1
    else:
        with pytest.raises(OperationalError):
            asyncio.run(gatherer.ask(1))
    gatherer.close()
