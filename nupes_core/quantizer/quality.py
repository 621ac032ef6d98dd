"""How far decoded weights are from the originals: sums that add up over matrices, and the figures made of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

CHUNK_WEIGHTS = 1 << 15
"""Short enough for the cache, and summed by one thread, so that figures do not depend on their number."""

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
    """Compare two tensors of one shape: float32 sums of short chunks, added up in float64."""
    a, b = w.reshape(-1), decoded.reshape(-1)
    parts = [slice(start, start + CHUNK_WEIGHTS) for start in range(0, w.numel(), CHUNK_WEIGHTS)]
    sums = torch.stack([_sums(a[part].float(), b[part].float()) for part in parts]).double().sum(0)
    error, signal, energy, dot = sums.tolist()
    return WeightError(w.numel(), error, signal, energy, dot)


def _sums(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    d = a - b
    return torch.stack([(d * d).sum(), (a * a).sum(), (b * b).sum(), (a * b).sum()])
