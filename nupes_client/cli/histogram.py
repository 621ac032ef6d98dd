"""The weights of a layer over the levels of its grid, drawn with characters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from nupes_client.schemas.jobs import Layer

ROWS = 10
_LABELS = (-1, -0.5, 0, 0.5, 1)
_MOST = 9
"""Levels that one character can stand for."""


@dataclass(frozen=True)
class Characters:
    """What is drawn with: `bars` from empty to full, `level` for one level, `many` for more than a digit says."""

    bars: str
    level: str
    many: str


BLOCKS = Characters(" ▁▂▃▄▅▆▇█", "│", "+")
ASCII = Characters(" #", "|", "+")
"""For terminals and pipes that have nothing else."""

_BASES: dict[str, Callable[[int], list[float]]] = {
    "signed": lambda half: [code / half for code in range(-half, half)],
    "midrise": lambda half: [(code + 0.5) / (half - 0.5) for code in range(-half, half)],
    "paper": lambda half: [code / (half - 1) for code in range(1 - half, half)],
}
"""Evenly spaced places of the codes by layout, of half as many codes as there are; the exponent bends them."""


def levels(layout: str, bits: int, exponent: float) -> list[float]:
    """Levels of a grid as `nupes_core.quantizer.grid` has them: ascending, none twice, the largest of size 1."""
    bases = _BASES[layout](1 << (bits - 1))
    return [(1 if base > 0 else -1) * abs(base) ** (1 / exponent) for base in bases]


def drawn(layer: Layer, width: int, characters: Characters = BLOCKS) -> Iterator[str]:
    """Yield the lines of a drawing: bars of the weights, marks of the levels, the axis, and what all that is.

    Args:
        layer: quantized, with its histogram.
        width: columns there are; bins that find no room are drawn together.
        characters: to draw with.
    """
    if not (layer.histogram and layer.layout and layer.bits and layer.exponent):
        raise ValueError(f"{layer.name} has no histogram")
    counts = _fitting(layer.histogram, width)
    grid = levels(layer.layout, layer.bits, layer.exponent)
    yield from _bars(counts, characters)
    yield _marks(grid, len(counts), characters)
    yield _axis(len(counts))
    yield ""
    yield f"{len(grid)} levels, exponent {layer.exponent:.3f}, layout {layer.layout}"
    yield f"bars: {sum(counts):,} weights over the scale of their group, the highest {max(counts):,}"
    yield f"marks: {characters.level} a level of the grid, a digit so many, {characters.many} more than {_MOST}"


def _fitting(counts: Sequence[int], width: int) -> list[int]:
    """Neighbours added up until there are not more than `width`."""
    fitting = list(counts)
    while len(fitting) > width and len(fitting) % 2 == 0:
        fitting = [fitting[place] + fitting[place + 1] for place in range(0, len(fitting), 2)]
    return fitting


def _bars(counts: Sequence[int], characters: Characters) -> Iterator[str]:
    """Lines from the top; what is there at all is seen."""
    full = len(characters.bars) - 1
    highest = max(*counts, 1)
    heights = [-(-count * ROWS * full // highest) for count in counts]
    for row in reversed(range(ROWS)):
        yield "".join(characters.bars[min(max(height - row * full, 0), full)] for height in heights).rstrip()


def _marks(grid: Sequence[float], columns: int, characters: Characters) -> str:
    found = Counter(min(int((level + 1) / 2 * columns), columns - 1) for level in grid)
    named = {0: " ", 1: characters.level, **{count: str(count) for count in range(2, _MOST + 1)}}
    return "".join(named.get(found[place], characters.many) for place in range(columns)).rstrip()


def _axis(columns: int) -> str:
    line = [" "] * (columns + 1)
    for value in _LABELS:
        word = f"{value:g}"
        place = min(max(round((value + 1) / 2 * columns) - len(word) // 2, 0), columns - len(word))
        line[place : place + len(word)] = word
    return "".join(line).rstrip()
