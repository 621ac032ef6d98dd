"""Pictures of the grid as SVG, drawn from the level tables that the quantizer itself uses."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from nupes_core.quantizer.grid import levels

WIDTH, LEFT, RIGHT = 720, 150, 20


def _x(value: float) -> float:
    """Place of a level in [-1, 1]."""
    return LEFT + (value + 1) / 2 * (WIDTH - LEFT - RIGHT)


def _row(label: str, table: torch.Tensor, y: int) -> str:
    ticks = "".join(
        f'<line x1="{_x(level):.1f}" x2="{_x(level):.1f}" y1="{y}" y2="{y + 22}" stroke="#5c6bc0" stroke-width="3"/>'
        for level in table.tolist()
    )
    text = f'<text x="0" y="{y + 16}" font-size="14" fill="currentColor">{label}</text>'
    rail = f'<line x1="{_x(-1)}" x2="{_x(1)}" y1="{y + 11}" y2="{y + 11}" stroke="currentColor" stroke-opacity=".25"/>'
    return text + rail + ticks


def _svg(title: str, height: int, body: str) -> str:
    return (
        f'<figure class="grid"><svg role="img" aria-label="{title}" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'xmlns="http://www.w3.org/2000/svg"><title>{title}</title>{body}</svg><figcaption>{title}</figcaption></figure>'
    )


def _bell(height: int) -> str:
    """The density of Gaussian weights in a group whose largest is 2.7 standard deviations."""
    points = [(value, math.exp(-((2.7 * value) ** 2) / 2)) for value in [step / 60 - 1 for step in range(121)]]
    path = " ".join(f"{_x(value):.1f},{height - density * (height - 8):.1f}" for value, density in points)
    return f'<polyline points="{path}" fill="none" stroke="currentColor" stroke-opacity=".5" stroke-width="1.5"/>'


def exponents() -> str:
    """16 levels under a bell, at several exponents."""
    rows = [
        _row(label, levels("signed", 4, torch.tensor(a)), 80 + 38 * index)
        for index, (label, a) in enumerate((("a = 1 (uniform)", 1.0), ("a = 0.8", 0.8), ("a = 0.6", 0.6)))
    ]
    title = "4 bits: the levels follow the weights as the exponent falls below 1. Above: how weights are spread."
    return _svg(title, 200, _bell(72) + "".join(rows))


def layouts() -> str:
    """The three layouts at 2 and 3 bits."""
    wanted = (("signed", 3), ("paper", 3), ("midrise", 2), ("signed", 2))
    rows = [
        _row(f"{layout}, {bits} bits", levels(layout, bits, torch.tensor(0.8)), 8 + 38 * index)
        for index, (layout, bits) in enumerate(wanted)
    ]
    return _svg("Layouts at a = 0.8: `paper` leaves a code unused, `midrise` has no zero.", 165, "".join(rows))


FIGURES: dict[str, Callable[[], str]] = {"exponents": exponents, "layouts": layouts}
