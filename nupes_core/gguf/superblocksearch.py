"""Scales, minima and codes of super-blocks, by least (weighted) squared error.

A super-block is 256 weights in groups of 16 or 32: ŵ = d·s·(q − zero) − dmin·m, with codes q, integers s and m for each
group, and floats d and dmin for all of them. Groups are searched first, as if scale and minimum were free: ranges that
the codes are spread over, each refitted by least squares. Then d and dmin are found, and s and m rounded to them;
codes, integers and floats are decided in turn from there, each given the others, and the best state is kept. So codes
are always those of the scale that they are decoded by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from nupes_core.gguf.blocktypes import SuperType
from nupes_core.quantizer.search import engine

RANGES = {
    2: (1.0, 0.85, 0.7, 0.55),
    3: (1.05, 0.99, 0.94, 0.89, 0.84, 0.79, 0.73, 0.67),
    4: (1.04, 1.0, 0.96, 0.92, 0.88),
    5: (1.02, 0.99, 0.96, 0.93),
    6: (1.025, 1.01, 0.995, 0.98, 0.965, 0.95),
}
"""Shares of the largest weights of a group that codes of a width are spread over."""

SHARES = (0.88, 0.92, 0.96, 1.0, 1.04)
"""Of the float that makes the largest scale the largest integer: less clips that one for the sake of the others."""

ROUNDS = 2
"""Times that integers and floats are decided again; more bring less than 0.1 % of the error."""

_Build = Callable[[torch.Tensor], tuple[torch.Tensor, "Grid"]]

_TINY = 1e-30
_LARGEST_HALF = 65504.0


@dataclass(frozen=True)
class SuperBlocks:
    """Super-blocks of one type, unpacked.

    Attributes:
        codes: uint8 [n, groups, size].
        scales, mins: int16 [n, groups]; mins are 0 for types without.
        d, dmin: float16 [n].
    """

    codes: torch.Tensor
    scales: torch.Tensor
    mins: torch.Tensor
    d: torch.Tensor
    dmin: torch.Tensor

    def steps(self) -> torch.Tensor:
        """Return float32 [n, groups], what a step from one code to the next is worth."""
        return self.d.float().unsqueeze(1) * self.scales

    def offsets(self) -> torch.Tensor:
        """Return float32 [n, groups], what is subtracted."""
        return self.dmin.float().unsqueeze(1) * self.mins

    def decode(self, kind: SuperType) -> torch.Tensor:
        """Return float32 [n, groups, size], as llama.cpp decodes them to the last bit."""
        product = self.steps().unsqueeze(2) * (self.codes.to(torch.int16) - kind.zero)
        return product - self.offsets().unsqueeze(2) if kind.most_min else product


class Grid(NamedTuple):
    """Where the levels of groups lie: `step`·(q − zero) − `offset`, each [n, groups]."""

    step: torch.Tensor
    offset: torch.Tensor


class _Sums(NamedTuple):
    """Σhcc, Σhcx, Σhc, Σhx and Σh of groups, c = q − zero: their error is a quadratic of these."""

    cc: torch.Tensor
    cx: torch.Tensor
    c: torch.Tensor
    x: torch.Tensor
    one: torch.Tensor

    def error(self, grid: Grid) -> torch.Tensor:
        """Return Σh(x − step·c + offset)², less Σhx²."""
        step, offset = grid
        return step * (step * self.cc - 2 * (self.cx + offset * self.c)) + offset * (offset * self.one + 2 * self.x)

    def best_step(self, offset: torch.Tensor) -> torch.Tensor:
        return _quotient(self.cx + offset * self.c, self.cc)

    def best_offset(self, step: torch.Tensor) -> torch.Tensor:
        return _quotient(step * self.c - self.x, self.one)


class _State(NamedTuple):
    """Integers [n, groups] and floats [n] of super-blocks; the floats are values of float16."""

    scales: torch.Tensor
    mins: torch.Tensor
    d: torch.Tensor
    dmin: torch.Tensor

    def grid(self) -> Grid:
        return Grid(self.scales * self.d.unsqueeze(1), self.mins * self.dmin.unsqueeze(1))


def search(x: torch.Tensor, h: torch.Tensor, kind: SuperType, start: Grid | None = None) -> SuperBlocks:
    """Find the super-blocks of least error.

    Args:
        x: float32 [n, groups, size], finite.
        h: float32, of a shape that broadcasts to x: non-negative weight of each squared error.
        kind: the type.
        start: grids that groups lie on already; None searches them.
    """
    h = h.expand_as(x)
    grid = _search_groups(x, h, kind) if start is None else start
    state = _rounded(_sums(x, h, grid, kind), grid, kind)
    best, least = state, torch.full_like(state.d, torch.inf)
    for last in (*[False] * ROUNDS, True):
        sums = _sums(x, h, state.grid(), kind)
        error = sums.error(state.grid()).sum(1)
        better = error < least
        least = torch.where(better, error, least)
        best = _State(*(_choose(better, new, old) for new, old in zip(state, best, strict=True)))
        if not last:
            state = _refitted(sums, state, kind)
    return SuperBlocks(
        codes=_encode(x, best.grid(), kind),
        scales=best.scales.to(torch.int16),
        mins=best.mins.to(torch.int16),
        d=best.d.half(),
        dmin=best.dmin.half(),
    )


def _search_groups(x: torch.Tensor, h: torch.Tensor, kind: SuperType) -> Grid:
    """Return the best grid of each group on its own, refitted once more at the end."""
    best = Grid(torch.zeros_like(x[..., 0]), torch.zeros_like(x[..., 0]))
    least = torch.full_like(best.step, torch.inf)
    for tried in _ranges(x, kind):
        sums = _sums(x, h, tried, kind)
        grid = _fit(sums, kind)
        error = sums.error(grid)
        better = error < least
        least = torch.where(better, error, least)
        best = Grid(*(torch.where(better, new, old) for new, old in zip(grid, best, strict=True)))
    return _fit(_sums(x, h, best, kind), kind)


def _ranges(x: torch.Tensor, kind: SuperType) -> Iterator[Grid]:
    """Yield grids to try: from a share of the least weight to one of the largest, or up to a share on either side."""
    shares = RANGES[kind.bits]
    if not kind.most_min:
        unit = x.abs().amax(-1) / kind.zero
        for share in shares:
            for sign in (share, -share):
                yield Grid(unit * sign, torch.zeros_like(unit))
        return
    low = x.amin(-1).clamp_max(0)
    high = torch.maximum(x.amax(-1), low)
    for below in shares:
        for above in shares:
            yield Grid((high * above - low * below) / ((1 << kind.bits) - 1), -low * below)


def _encode(x: torch.Tensor, grid: Grid, kind: SuperType) -> torch.Tensor:
    """Return the nearest codes, uint8 of the shape of x."""
    found: torch.Tensor = engine(x.device).group_codes(*_flat(x, grid), _limits(kind))
    return found.view(x.shape)


def _sums(x: torch.Tensor, h: torch.Tensor, grid: Grid, kind: SuperType) -> _Sums:
    """Return the sums of the codes that are nearest on a grid."""
    x, inverse, offset = _flat(x, grid)
    found = engine(x.device).group_sums(x, h.reshape(x.shape), inverse, offset, _limits(kind))
    return _Sums(*(each.view(grid.step.shape) for each in found))


def _flat(x: torch.Tensor, grid: Grid) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return groups [n·groups, size], the inverse of their steps and their offsets [n·groups]."""
    inverse = _quotient(torch.ones_like(grid.step), grid.step)
    return x.reshape(-1, x.shape[-1]), inverse.flatten(), grid.offset.flatten()


def _limits(kind: SuperType) -> tuple[int, int]:
    return -kind.zero, (1 << kind.bits) - 1 - kind.zero


def _fit(sums: _Sums, kind: SuperType) -> Grid:
    """Return the grid of least error for given codes; an offset below 0 is none, as it is stored without a sign."""
    plain = sums.best_step(torch.zeros_like(sums.cc))
    if not kind.most_min:
        return Grid(plain, torch.zeros_like(plain))
    both = sums.cc * sums.one
    determinant = both - sums.c * sums.c
    step = _quotient(sums.cx * sums.one - sums.c * sums.x, determinant)
    offset = _quotient(sums.c * sums.cx - sums.cc * sums.x, determinant)
    sound = (determinant > 1e-6 * both) & (step > 0) & (offset > 0)
    return Grid(torch.where(sound, step, plain.clamp_min(0)), torch.where(sound, offset, 0.0))


def _rounded(sums: _Sums, grid: Grid, kind: SuperType) -> _State:
    """Round scales, then minima given those, to the floats that cost least."""
    least, most = kind.scale_range
    largest = grid.step.gather(1, grid.step.abs().argmax(1, keepdim=True)).squeeze(1)

    def with_scale(d: torch.Tensor) -> tuple[torch.Tensor, Grid]:
        scales = _integers(grid.step, d, least, most)
        step = scales * d.unsqueeze(1)
        offset = sums.best_offset(step).clamp_min(0) if kind.most_min else grid.offset
        return scales, Grid(step, offset)

    d, scales, chosen = _best_float(largest / (least if least < 0 else most), with_scale, sums)
    if not kind.most_min:
        return _State(scales, torch.zeros_like(scales), d, torch.zeros_like(d))

    def with_minimum(dmin: torch.Tensor) -> tuple[torch.Tensor, Grid]:
        mins = _integers(chosen.offset, dmin, 0, kind.most_min)
        return mins, Grid(chosen.step, mins * dmin.unsqueeze(1))

    dmin, mins, _ = _best_float(chosen.offset.amax(1) / kind.most_min, with_minimum, sums)
    return _State(scales, mins, d, dmin)


def _best_float(unit: torch.Tensor, build: _Build, sums: _Sums) -> tuple[torch.Tensor, torch.Tensor, Grid]:
    """Return the share of `unit` [n], as float16, whose integers cost least, with them and their grids."""
    best: tuple[torch.Tensor, ...] = ()
    least = torch.full_like(unit, torch.inf)
    for share in SHARES:
        tried = _half(unit * share)
        integers, grid = build(tried)
        found = (tried, integers, *grid)
        error = sums.error(grid).sum(1)
        better = error < least
        least = torch.where(better, error, least)
        best = tuple(_choose(better, new, old) for new, old in zip(found, best or found, strict=True))
    float_, integers, step, offset = best
    return float_, integers, Grid(step, offset)


def _refitted(sums: _Sums, state: _State, kind: SuperType) -> _State:
    """Decide integers again, and then floats, for given codes."""
    scales = _integers(sums.best_step(state.grid().offset), state.d, *kind.scale_range)
    if not kind.most_min:
        d = _quotient((scales * sums.cx).sum(1), (scales * scales * sums.cc).sum(1))
        return _State(scales, state.mins, _half(d), state.dmin)
    step = scales * state.d.unsqueeze(1)
    mins = _integers(sums.best_offset(step), state.dmin, 0, kind.most_min)
    ss, sx = (scales * scales * sums.cc).sum(1), (scales * sums.cx).sum(1)
    mm, mx = (mins * mins * sums.one).sum(1), (mins * sums.x).sum(1)
    sm = (scales * mins * sums.c).sum(1)
    determinant = ss * mm - sm * sm
    d, dmin = _quotient(sx * mm - sm * mx, determinant), _quotient(sm * sx - ss * mx, determinant)
    sound = (determinant > 1e-6 * ss * mm) & (d > 0) & (dmin >= 0)
    return _State(scales, mins, _half(torch.where(sound, d, state.d)), _half(torch.where(sound, dmin, state.dmin)))


def _integers(wanted: torch.Tensor, unit: torch.Tensor, least: int, most: int) -> torch.Tensor:
    """Return the nearest multiples [n, groups] of `unit` [n], as floats."""
    return _quotient(wanted, unit.unsqueeze(1).expand_as(wanted)).round().clamp(least, most)


def _choose(better: torch.Tensor, new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """Choose by super-block."""
    return torch.where(better.view(-1, *[1] * (new.dim() - 1)), new, old)


def _quotient(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return a / b, 0 where b is (all but) 0."""
    return torch.where(b.abs() > _TINY, a / b, 0.0)


def _half(x: torch.Tensor) -> torch.Tensor:
    """Round to float16, in float32."""
    return x.clamp(-_LARGEST_HALF, _LARGEST_HALF).half().float()
