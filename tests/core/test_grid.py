from __future__ import annotations

import pytest
import torch

from nupes_core.quantizer.grid import encode, exponent_code, exponent_value, level_lookup, levels

CPU = torch.device("cpu")


def table(layout: str, bits: int, a: float) -> torch.Tensor:
    return levels(layout, bits, torch.tensor([a]))[0]


@pytest.mark.parametrize("layout", ["signed", "midrise", "paper"])
@pytest.mark.parametrize("bits", range(2, 9))
def test_levels_ascend_and_reach_one(layout: str, bits: int) -> None:
    grid = table(layout, bits, 0.7)

    assert grid.shape == (1 << bits,)
    assert bool((grid.diff() >= 0).all())
    assert float(grid.abs().max()) == 1


def test_signed_levels_have_a_zero_and_one_more_level_below_it() -> None:
    assert table("signed", 3, 1.0).tolist() == [-1, -0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75]


def test_midrise_levels_are_symmetric_without_a_zero() -> None:
    assert table("midrise", 2, 1.0).tolist() == pytest.approx([-1, -1 / 3, 1 / 3, 1])


def test_paper_levels_are_the_inverse_of_the_rounded_power() -> None:
    a, M = 0.5, 7
    assert table("paper", 4, a)[:15].tolist() == pytest.approx(
        [(1 if q > 0 else -1) * (abs(q) / M) ** (1 / a) for q in range(-M, M + 1)]
    )


def test_a_smaller_exponent_puts_more_levels_near_zero() -> None:
    near = [int((table("signed", 4, a).abs() < 0.25).sum()) for a in (0.5, 1.0, 1.5)]

    assert near[0] > near[1] > near[2]


def test_encoding_takes_the_nearest_level() -> None:
    x = torch.randn(5, 40)
    grid = table("signed", 4, 0.6)
    nearest = (x.unsqueeze(-1) - grid).abs().argmin(-1)

    assert torch.equal(grid[encode(x, grid.expand(5, -1))], grid[nearest])


def test_stored_exponents_are_within_half_a_step() -> None:
    for a in (0.3, 0.6789, 1.0, 1.575):
        assert exponent_value(exponent_code(a)) == pytest.approx(a, abs=0.00251)


def test_the_lookup_holds_the_table_of_every_stored_exponent() -> None:
    code = exponent_code(0.8)

    assert torch.allclose(level_lookup("signed", 4, CPU)[code], table("signed", 4, exponent_value(code)))
