"""A quantizable module seen as a matrix [rows = outputs, cols = inputs], and its inputs as rows of that width."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D


def matrix_of(module: Any) -> torch.Tensor:
    """Return the weight of a linear or convolution layer as [rows, cols]; a view where that is possible."""
    w: torch.Tensor = module.weight.detach()
    return w.T if isinstance(module, Conv1D) else w.flatten(1)


def weight_of(module: Any, matrix: torch.Tensor) -> torch.Tensor:
    """Return `matrix` [rows, cols] in the shape of the module's weight; keeps the gradient."""
    return matrix.T if isinstance(module, Conv1D) else matrix.view(module.weight.shape)


def input_rows(module: Any, x: torch.Tensor) -> torch.Tensor | None:
    """Return the inputs that each row of the weight is multiplied with, [n, cols]; None where rows differ in them.

    Args:
        module: `nn.Linear`, `Conv1D` or `nn.Conv2d` without groups (whose rows see different channels).
        x: input of one call.
    """
    if not isinstance(module, nn.Conv2d):
        return x.flatten(0, -2)
    if module.groups != 1:
        return None
    if module.padding_mode == "zeros" and not isinstance(module.padding, str):
        patches = functional.unfold(x, module.kernel_size, module.dilation, module.padding, module.stride)
        return patches.transpose(1, 2).flatten(0, 1)
    return None
