"""What a family of formats asks of the numbers it holds. Torch-free."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nupes_core.config import QuantizationConfig, WeightConfig
from nupes_core.errors import InvalidConfigError
from nupes_core.gguf.blocktypes import LAYOUTS as GGML_LAYOUTS
from nupes_core.header import TensorInfo
from nupes_core.selection import MatrixView, ModelFacts
from nupes_core.storage import WeightFormat, weight_nbytes

if TYPE_CHECKING:
    import torch

    from nupes_core.quantizer.weight import QuantizedWeight


@dataclass(frozen=True, eq=False)
class Recipe:
    """How weights are quantized for some formats; formats of one recipe hold the same codes and share one run.

    Attributes:
        adapt: what a job asks for -> the configuration these formats are quantized with. Raises `InvalidConfigError`
            for what they cannot hold at all.
        settle: (how a tensor is read, settings of its layer, the adapted configuration) -> the settings that its
            matrices are quantized with, which may depend on their shape.
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
    settle: Callable[[MatrixView, WeightConfig, QuantizationConfig], WeightConfig] = lambda view, weight, config: weight


def _as_asked(config: QuantizationConfig) -> QuantizationConfig:
    if config.weights.layout in GGML_LAYOUTS:
        raise InvalidConfigError(
            f"layout {config.weights.layout} is one of llama.cpp's types, which format gguf alone holds",
            hint="Leave layout out; format gguf takes the type that is nearest to the asked bits.",
        )
    return config


AS_ASKED = Recipe(
    adapt=_as_asked,
    refuse=lambda info, view, fmt, facts: None,
    nbytes=lambda info, view, fmt: weight_nbytes(fmt) * view.count,
    decode=lambda weight, dtype: weight.dequantize(dtype),
)
"""Power grids of this project, nothing left out: what `nupes` holds, and `dense` is decoded from."""
