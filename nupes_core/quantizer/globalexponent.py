"""One exponent for a whole model (scope `global`): fitted on groups sampled from every matrix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from nupes_core.config import PER_CHANNEL, ExponentConfig, WeightConfig
from nupes_core.errors import NumericsError
from nupes_core.quantizer.weight import quantize_weight

SAMPLE_WEIGHTS = 1 << 16
"""Weights in all; the optimum is flat."""

LONGEST_GROUP = 1024
"""Most weights of a row that stand for it, where a group is a whole row."""


@dataclass(frozen=True)
class Matrix:
    """A weight matrix [rows, cols] that can be read when it is needed."""

    name: str
    rows: int
    cols: int
    read: Callable[[], torch.Tensor]


def global_exponent(matrices: Sequence[Matrix], config: WeightConfig) -> float | None:
    """Return the shared exponent, or None where the scope is finer or the exponent is fixed.

    Each matrix gives the same number of groups, each divided by its largest weight.

    Raises:
        NumericsError: a sampled weight is NaN or an infinity.
    """
    if config.exponent.scope != "global" or config.exponent.mode == "fixed":
        return None
    wanted = LONGEST_GROUP if config.group_size == PER_CHANNEL else config.group_size
    size = min(wanted, max(matrix.cols for matrix in matrices))
    groups = max(SAMPLE_WEIGHTS // size // len(matrices), 1)
    samples = [_sample(matrix, size, groups) for matrix in matrices if matrix.cols >= size]
    return quantize_weight(
        torch.cat(samples), replace(config, group_size=size, exponent=ExponentConfig(scope="layer"))
    ).exponent


def _sample(matrix: Matrix, size: int, groups: int) -> torch.Tensor:
    """Return float32 [at most groups, size] of evenly spread rows."""
    count = min(groups, matrix.rows)
    sample = matrix.read()[torch.arange(count) * matrix.rows // count, :size].float()
    if not bool(sample.isfinite().all()):
        raise NumericsError(f"{matrix.name} holds NaN or an infinity")
    return sample / sample.abs().amax(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
