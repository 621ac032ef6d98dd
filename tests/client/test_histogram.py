"""The drawing of a histogram: the grid is the quantizer's, no weight is lost, and any terminal has room for it."""

from __future__ import annotations

import pytest
import torch

from nupes_client.cli.histogram import ASCII, ROWS, drawn, levels
from nupes_core.quantizer import grid
from tests.app.jobrows import make_layer

COUNTS = [3 * place for place in range(64)]


@pytest.mark.parametrize("layout", ["signed", "midrise", "paper"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("exponent", [0.3, 0.705, 1.575])
def test_the_levels_are_those_of_the_quantizer(layout: str, bits: int, exponent: float) -> None:
    wanted = grid.levels(layout, bits, torch.tensor(exponent)).unique().tolist()
    assert levels(layout, bits, exponent) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize(("width", "columns"), [(200, 64), (64, 64), (63, 32), (20, 16)])
def test_bins_that_find_no_room_are_drawn_together(width: int, columns: int) -> None:
    lines = list(drawn(make_layer("a", histogram=COUNTS), width))
    assert max(map(len, lines[: ROWS + 2])) == columns
    assert f"{sum(COUNTS):,} weights" in lines[-2]


def test_the_tallest_bar_is_full_and_the_smallest_is_seen() -> None:
    lines = list(drawn(make_layer("a", histogram=[100_000, 1, 0, 0]), 80))
    assert [line[0] for line in lines[:ROWS]] == ["█"] * ROWS
    assert lines[ROWS - 1] == "█▁"


def test_nothing_counted_draws_nothing() -> None:
    assert list(drawn(make_layer("a", histogram=[0] * 64), 80))[:ROWS] == [""] * ROWS


def test_levels_that_share_a_column_are_counted_there() -> None:
    marks = list(drawn(make_layer("a", bits=8, layout="midrise", exponent=1.0, histogram=[1] * 64), 80))[ROWS]
    assert sum(map(int, marks)) == 256
    crowded = list(drawn(make_layer("a", bits=8, layout="midrise", exponent=1.0, histogram=[1] * 64), 16))[ROWS]
    assert set(crowded) == {"+"}


def test_a_terminal_without_blocks_gets_plain_characters() -> None:
    lines = list(drawn(make_layer("a", bits=3, histogram=COUNTS), 80, ASCII))
    assert all(line.isascii() for line in lines)
    assert lines[0].endswith("#")
