"""What a family of formats asks of the numbers it holds. Torch-free."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nupes_core.config import QuantizationConfig
from nupes_core.header import TensorInfo
from nupes_core.selection import MatrixView, ModelFacts
from nupes_core.storage import WeightFormat, weight_nbytes

if TYPE_CHECKING:
    import torch

    from nupes_core.weight import QuantizedWeight


@dataclass(frozen=True, eq=False)
class Recipe:
    """How weights are quantized for some formats; formats of one recipe hold the same codes and share one run.

    Attributes:
        adapt: what a job asks for -> the configuration these formats are quantized with. Raises `InvalidConfigError`
            for what they cannot hold at all.
        refuse: (checkpoint tensor, how it is read, how its matrices are coded, facts of the model) -> why these formats
            leave the tensor alone, or None.
        nbytes: bytes that a quantized tensor takes: of its codes and their side information.
        decode: (matrix, dtype of the checkpoint) -> [rows, cols], as consumers decode what is stored: in that dtype, or
            in float32 where they always do.
    """

    adapt: Callable[[QuantizationConfig], QuantizationConfig]
    refuse: Callable[[TensorInfo, MatrixView, WeightFormat, ModelFacts], str | None]
    nbytes: Callable[[TensorInfo, MatrixView, WeightFormat], int]
    decode: Callable[[QuantizedWeight, torch.dtype], torch.Tensor]


AS_ASKED = Recipe(
    adapt=lambda config: config,
    refuse=lambda info, view, fmt, facts: None,
    nbytes=lambda info, view, fmt: weight_nbytes(fmt) * view.count,
    decode=lambda weight, dtype: weight.dequantize(dtype),
)
"""Power grids of this project, nothing left out: what `nupes` holds, and `dense` is decoded from."""
