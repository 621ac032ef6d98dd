"""What the suite does where time is short: the cheap tests first, and an end that says what was not reached.

A run under `--budget MINUTES` starts no test after that time; each one left out is reported as skipped, with the
reason. Without the option all tests run, however long they take.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest

_OF_PROCESSES = ("docs", "security", "web", "e2e", "worker", "upgrade", "chaos")
"""Folders of tests that start processes, the longest last."""

_started = time.monotonic()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--budget", type=float, metavar="MINUTES", help="start no test after so many minutes")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _rank(item.path.parts))


def pytest_runtest_setup(item: pytest.Item) -> None:
    minutes = item.config.getoption("--budget")
    if minutes is not None and time.monotonic() - _started > 60 * minutes:
        pytest.skip(f"NOT REACHED: the {minutes:g} minutes of this run are over on this machine")


def _rank(folders: Sequence[str]) -> int:
    return next((rank for rank, folder in enumerate(_OF_PROCESSES, start=1) if folder in folders), 0)
