"""The grid of activation codes, uniform or power (method §4).

A code stands for k = −z … 2^b−1−z, its value is sign(k)·|k|^(1/a)·unit. The zero point z says what inputs are expected:
0 where they are never negative (after ReLU), 2^(b−1) where they are symmetric, between these where they have a lower
bound (after SiLU or GELU). Zero is always a value, and values multiply as powers whatever z: the integer form of the
method needs no offset beside its table.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

TINY = 1e-30
"""Ranges below this count as zero."""


@dataclass(frozen=True)
class CodeGrid:
    """Grid of one layer; scales and zero points are arguments, so that each token can have its own.

    Attributes:
        bits: code width b.
        a: exponent, float64 scalar tensor; None on the uniform grid.
    """

    bits: int
    a: torch.Tensor | None = None

    @property
    def steps(self) -> int:
        """Number of codes less one."""
        return (1 << self.bits) - 1

    def magnitude(self, k: torch.Tensor) -> torch.Tensor:
        """Return k^(1/a) of k ≥ 0, float32."""
        return k.float() if self.a is None else (k.double() ** (1 / self.a)).float()

    def zero_point(self, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        """Return how many codes lie below zero, whole floats, when the ends of the range low ≤ 0 ≤ high share them."""
        below, above = -low.double(), high.double()
        if self.a is not None:
            below, above = below**self.a, above**self.a
        return (self.steps * below / (below + above).clamp_min(TINY)).round().float()

    def unit(self, low: torch.Tensor, high: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
        """Return the value of k = 1 with which both ends of the range are reached, as far as they have codes."""
        below = torch.where(zero > 0, -low / self.magnitude(zero).clamp_min(1), 0.0)
        above = torch.where(zero < self.steps, high / self.magnitude(self.steps - zero).clamp_min(1), 0.0)
        return torch.maximum(below, above).clamp_min(TINY)

    def nearest(self, x: torch.Tensor, unit: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
        """Return the value nearest to each x (float32); `unit` and `zero` broadcast to it."""
        y = x / unit
        if self.a is None:
            return torch.clamp(y.round(), -zero, self.steps - zero) * unit
        table = self.magnitude(torch.arange(self.steps + 1, device=x.device))
        k = torch.bucketize(y.abs().contiguous(), (table[1:] + table[:-1]) / 2)
        side = torch.where(y < 0, zero, self.steps - zero).long()
        return y.sign() * table[torch.minimum(k, side)] * unit

    def ends(self, unit: torch.Tensor, zero: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the smallest and the largest value."""
        return -self.magnitude(zero) * unit, self.magnitude(self.steps - zero) * unit


def token_range(x: torch.Tensor, dims: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the least and greatest value of each token, zero included; the `dims` trailing dimensions become 1."""
    trailing = tuple(range(-min(dims, x.dim()), 0))
    return x.amin(trailing, keepdim=True).clamp_max(0), x.amax(trailing, keepdim=True).clamp_min(0)
