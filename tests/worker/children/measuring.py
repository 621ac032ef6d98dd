"""A child that measures curves: `python -m tests.worker.children.measuring HOW`."""

from __future__ import annotations

import sys

from nupes_core.report import Metric
from worker.curves import MOST_POINTS, Curves
from worker.emitter import Emitter


def fail(curves: Curves) -> None:
    for step in range(500):
        curves.add(Metric("loss", step, 1 / (1 + step)))
    raise ZeroDivisionError


def flood(curves: Curves) -> None:
    for step in range(3 * MOST_POINTS):
        curves.add(Metric("loss", step, 0.123456789))


if __name__ == "__main__":
    with Curves(Emitter()) as curves:
        globals()[sys.argv[1]](curves)
