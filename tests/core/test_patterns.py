"""Patterns that strangers send can not hold the process."""

from __future__ import annotations

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from nupes_core.errors import InvalidConfigError
from nupes_core.patterns import TIME_LIMIT_S, check_pattern, matches


@pytest.mark.parametrize(
    ("pattern", "name", "found"),
    [
        ("lm_head", "lm_head", True),
        (r"layers\.0\.", "model.layers.0.mlp.up_proj", True),
        (r"layers\.0\.", "model.layers.10.mlp.up_proj", False),
        ("^model$", "model.layers", False),
    ],
)
def test_a_pattern_is_searched_in_the_name(pattern: str, name: str, found: bool) -> None:
    assert matches(pattern, name) is found


@pytest.mark.parametrize("pattern", [r"(\w+\s?)+$!", r"(a|aa)+$!", r"((a+)+)+$!"])
def test_a_pattern_that_explodes_is_refused_in_time(pattern: str) -> None:
    started = time.process_time()
    with contextlib.suppress(InvalidConfigError):
        matches(pattern, "a" * 60 + "!")
    assert time.process_time() - started < 2 * TIME_LIMIT_S


def test_an_honest_pattern_is_not_refused_because_other_threads_are_busy() -> None:
    def ask(_: int) -> list[bool]:
        found = []
        for number in range(60):
            sum(range(20_000))  # what a request does beside
            found.append(matches("lm_head", f"model.layers.{number}.mlp.down_proj"))
        return found

    with ThreadPoolExecutor(16) as threads:
        assert not any(found for each in threads.map(ask, range(16)) for found in each)


def test_at_least_one_of_them_does_explode() -> None:
    with pytest.raises(InvalidConfigError, match="takes too long"):
        matches(r"^(?:(?:a|aa)+b?)+$", "a" * 80 + "!")


def test_no_regular_expression_is_refused() -> None:
    with pytest.raises(InvalidConfigError, match=r"layers\.exclude is"):
        check_pattern("layers.exclude", "(")
