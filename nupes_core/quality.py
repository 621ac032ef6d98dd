"""How far decoded weights are from the originals: sums that add up over matrices, and the figures made of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

CHUNK_WEIGHTS = 1 << 20
BEST_SQNR_DB = 200.0
"""Reported where nothing was lost, so that every figure is finite."""


@dataclass(frozen=True)
class WeightError:
    """Sums over weights w and their decoded values ŵ: Σ(w−ŵ)², Σw², Σŵ², Σwŵ."""

    count: int
    error: float
    signal: float
    decoded: float
    dot: float

    @property
    def mse(self) -> float:
        """Mean squared error."""
        return self.error / self.count

    @property
    def sqnr_db(self) -> float:
        """Signal to quantization noise ratio, dB, at most `BEST_SQNR_DB`."""
        if self.error == 0 or self.signal == 0:
            return BEST_SQNR_DB if self.error == 0 else -BEST_SQNR_DB
        return min(10 * math.log10(self.signal / self.error), BEST_SQNR_DB)

    @property
    def cosine(self) -> float:
        """Cosine similarity; 1 where both are zero."""
        norm = math.sqrt(self.signal * self.decoded)
        return min(self.dot / norm, 1.0) if norm else float(self.error == 0)

    @property
    def finite(self) -> bool:
        """Whether no value was NaN or infinite."""
        return math.isfinite(self.signal + self.decoded)


def weight_error(w: torch.Tensor, decoded: torch.Tensor) -> WeightError:
    """Compare two [rows, cols] matrices, chunk by chunk, in float32 with float64 sums."""
    rows = max(CHUNK_WEIGHTS // max(w.shape[1], 1), 1)
    sums = torch.zeros(4, dtype=torch.float64)
    for start in range(0, w.shape[0], rows):
        a32, b32 = (matrix[start : start + rows].float() for matrix in (w, decoded))
        products = ((a32 - b32).square(), a32.square(), b32.square(), a32 * b32)
        sums += torch.stack([product.sum(dtype=torch.float64) for product in products]).cpu()
    error, signal, energy, dot = sums.tolist()
    return WeightError(w.numel(), error, signal, energy, dot)
