"""Searches range, zero point and exponent of least squared error for the inputs of a layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch

from nupes_core.activations.grid import CodeGrid
from nupes_core.activations.quantizer import POWER_EXPONENT, ActivationQuantizer, Kind
from nupes_core.config import ActivationConfig
from nupes_core.quantizer.grid import exponent_code, exponent_value

PERCENTILE = 0.9999
"""Share of the inputs within each end of a range, with range `percentile`."""

SYMMETRIC = 0.5
"""Inputs count as symmetric where the shorter side reaches half as far as the longer one."""

_COARSE = tuple(0.8**i for i in range(25))
_FINE = (0.88, 0.94, 1.0, 1.06, 1.12)
_SHARES = tuple(1 - 0.05 * i for i in range(16))
_EXPONENTS = tuple(exponent_value(exponent_code(0.3 + 0.05 * i)) for i in range(19))


@dataclass(frozen=True)
class Evidence:
    """What is known of the inputs of a layer.

    Attributes:
        tokens: float32 [n, 3], inputs with the least and the greatest value of their token.
        values, weights: float32 [m], inputs with all extremes among them, and how many inputs each stands for.
    """

    tokens: torch.Tensor
    values: torch.Tensor
    weights: torch.Tensor

    def quantile(self, share: float) -> float:
        """Return the value below which a share of all inputs lies."""
        values, order = self.values.sort()
        total = self.weights[order].double().cumsum(0)
        index = int(torch.searchsorted(total, share * float(total[-1])))
        return float(values[min(index, len(values) - 1)])


@dataclass(frozen=True)
class _Range:
    """A candidate: the ends low ≤ 0 ≤ high, and the exponent (None on the uniform grid)."""

    kind: Kind
    bits: int
    low: float
    high: float
    a: float | None

    @property
    def grid(self) -> CodeGrid:
        """The grid with this exponent."""
        return CodeGrid(self.bits, None if self.a is None else torch.tensor(self.a, dtype=torch.float64))

    def zero(self) -> torch.Tensor:
        """Return the zero point that the kind asks for."""
        if self.kind == "offset":
            return self.grid.zero_point(torch.tensor(self.low), torch.tensor(self.high))
        return torch.tensor(0.0 if self.kind == "unsigned" else float(1 << (self.bits - 1)))

    def unit(self) -> torch.Tensor:
        """Return the value of k = 1."""
        return self.grid.unit(torch.tensor(self.low), torch.tensor(self.high), self.zero())

    def error(self, evidence: Evidence) -> float:
        """Return the squared error of all inputs."""
        found = self.grid.nearest(evidence.values, self.unit(), self.zero())
        return float(((found - evidence.values).square() * evidence.weights).double().sum())

    def quantizer(self, config: ActivationConfig, token_dims: int) -> ActivationQuantizer:
        """Return the static quantizer of this range."""
        zero = self.zero()
        largest = self.grid.magnitude(torch.maximum(zero, self.grid.steps - zero)) * self.unit()
        return ActivationQuantizer(
            config,
            kind=self.kind,
            scale=float(largest),
            zero=int(zero),
            exponent=1.0 if self.a is None else self.a,
            token_dims=token_dims,
        )


def fit_static(evidence: Evidence, config: ActivationConfig, token_dims: int) -> ActivationQuantizer:
    """Return a quantizer of fixed range: of least squared error, or up to a high percentile of the inputs."""
    by_error = config.range == "mse"
    search: Callable[[_Range, Evidence], _Range] = _search_range if by_error else lambda start, _: start
    share = 1.0 if by_error else PERCENTILE
    low, high = min(evidence.quantile(1 - share), 0.0), max(evidence.quantile(share), 0.0)
    a = POWER_EXPONENT[config.bits] if config.grid == "power" else None
    best = search(_Range(_kind(evidence), config.bits, low, high, a), evidence)
    if config.grid == "power":
        # ranges and exponents are searched in turn: a smaller exponent reaches further
        best = search(_search_exponent(best, evidence), evidence)
        best = _search_exponent(best, evidence)
    return best.quantizer(config, token_dims)


def fit_dynamic(evidence: Evidence, config: ActivationConfig, token_dims: int) -> ActivationQuantizer:
    """Return a quantizer whose range follows each token: the kept share of it, and the exponent, of least error."""
    exponents = _EXPONENTS if config.grid == "power" else (None,)
    values, low, high = evidence.tokens.unbind(1)
    kind: Kind = "unsigned" if bool((low >= 0).all()) else "offset"

    def error(a: float | None, share: float) -> float:
        grid = CodeGrid(config.bits, None if a is None else torch.tensor(a, dtype=torch.float64))
        zero = grid.zero_point(low, high)
        found = grid.nearest(values, grid.unit(low, high, zero) * share, zero)
        return float((found - values).square().double().sum())

    a = min(exponents, key=lambda each: error(each, 1.0))
    share = min(_SHARES, key=lambda each: error(a, each))
    a = min(exponents, key=lambda each: error(each, share))
    return ActivationQuantizer(config, kind=kind, scale=share, exponent=1.0 if a is None else a, token_dims=token_dims)


def _kind(evidence: Evidence) -> Kind:
    if not bool((evidence.values < 0).any()):
        return "unsigned"
    below, above = max(-evidence.quantile(0.001), 0.0), max(evidence.quantile(0.999), 0.0)
    return "signed" if min(below, above) >= SYMMETRIC * max(below, above) else "offset"


def _search_range(start: _Range, evidence: Evidence) -> _Range:
    """Shrink the ends of a range, together where zero lies in the middle, else in turn."""
    if start.kind != "offset":
        return _shrink(start, evidence, low=True, high=True)
    best = _shrink(start, evidence, high=True)
    return _shrink(_shrink(best, evidence, low=True), evidence, high=True)


def _shrink(start: _Range, evidence: Evidence, *, low: bool = False, high: bool = False) -> _Range:
    best = start
    for shares in (_COARSE, _FINE):
        candidates = (
            replace(best, low=best.low * (s if low else 1), high=best.high * (s if high else 1)) for s in shares
        )
        best = _least(candidates, lambda candidate: candidate.error(evidence))
    return best


def _search_exponent(start: _Range, evidence: Evidence) -> _Range:
    return _least((replace(start, a=a) for a in _EXPONENTS), lambda candidate: candidate.error(evidence))


def _least(candidates: Iterable[_Range], error: Callable[[_Range], float]) -> _Range:
    return min(candidates, key=error)
