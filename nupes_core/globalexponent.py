"""One exponent for a whole model (scope `global`): fitted on groups sampled from every matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from nupes_core.config import PER_CHANNEL, ExponentConfig, QuantizationConfig
from nupes_core.errors import NumericsError
from nupes_core.planned import PlannedTensor
from nupes_core.sources import Checkpoint
from nupes_core.tensorwork import read_matrix
from nupes_core.weight import quantize_weight

SAMPLE_WEIGHTS = 1 << 16
"""Weights in all; the optimum is flat."""

LONGEST_GROUP = 1024
"""Most weights of a row that stand for it, where a group is a whole row."""


def global_exponent(
    checkpoint: Checkpoint, tensors: Sequence[PlannedTensor], config: QuantizationConfig
) -> float | None:
    """Return the shared exponent, or None where the scope is finer or the exponent is fixed.

    Each tensor gives the same number of groups, each divided by its largest weight.
    """
    exponent = config.weights.exponent
    if exponent.scope != "global" or exponent.mode == "fixed":
        return None
    wanted = LONGEST_GROUP if config.weights.group_size == PER_CHANNEL else config.weights.group_size
    size = min(wanted, max(tensor.coding.view.cols for tensor in tensors if tensor.coding))
    groups = max(SAMPLE_WEIGHTS // size // len(tensors), 1)
    samples = [_sample(checkpoint, tensor, size, groups) for tensor in tensors]
    weights = replace(config.weights, group_size=size, exponent=ExponentConfig(scope="layer"))
    return quantize_weight(torch.cat(samples), weights).exponent


def _sample(checkpoint: Checkpoint, tensor: PlannedTensor, size: int, groups: int) -> torch.Tensor:
    """Return float32 [at most groups, size]: evenly spread rows of the first matrix, none if its rows are too short."""
    assert tensor.coding is not None, f"{tensor.name} is not quantized"
    rows, cols = tensor.coding.view.rows, tensor.coding.view.cols
    if cols < size:
        return torch.empty(0, size)
    w = read_matrix(checkpoint, tensor.name, tensor.coding, 0)
    count = min(groups, rows)
    sample = w[torch.arange(count) * rows // count, :size].float()
    if not bool(sample.isfinite().all()):
        raise NumericsError(f"{tensor.name} holds NaN or an infinity")
    return sample / sample.abs().amax(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
