"""What becomes of each tensor of a checkpoint: quantized in which format, or left alone and why. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from nupes_core.config import ActivationConfig, QuantizationConfig, WeightConfig
from nupes_core.header import TensorInfo
from nupes_core.recipe import AS_ASKED, Recipe
from nupes_core.selection import MatrixView, ModelFacts, has_coded_input, layer_config, matrix_view, module_name
from nupes_core.storage import WeightFormat, resolve_format


@dataclass(frozen=True)
class Coding:
    """How a tensor is quantized.

    Attributes:
        view: how it is read as matrices.
        weight: settings of the search.
        format: storage of each of its matrices.
        activation: how the layer's input is coded; None leaves it float.
    """

    view: MatrixView
    weight: WeightConfig
    format: WeightFormat
    activation: ActivationConfig | None = None


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of a checkpoint, and what becomes of it.

    Attributes:
        name: in the checkpoint.
        shard: its file.
        dtype, shape: as stored; dtype is the safetensors name.
        bytes_after: of its codes and their side information (what belongs to activations is not counted).
        coding: how it is quantized; None exactly when `skipped_reason` says why it is left alone.
    """

    name: str
    shard: str
    dtype: str
    shape: tuple[int, ...]
    params: int
    bytes_before: int
    bytes_after: int
    coding: Coding | None = None
    skipped_reason: str | None = None

    @property
    def module(self) -> str:
        """Module that owns the tensor (the tensor's own name where it is a bare parameter)."""
        return module_name(self.name)

    def without_data(self) -> PlannedTensor:
        """Return it as it is written where calibration data did not reach the layer: its input has dynamic scales."""
        if self.coding is None or self.coding.activation is None:
            return self
        activation = replace(self.coding.activation, scaling="dynamic")
        return replace(self, coding=replace(self.coding, activation=activation))

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dict for people, without the internals of the format."""
        weight = self.coding.weight if self.coding else None
        return {
            "name": self.module,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "params": self.params,
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
            "bits": weight.bits if weight else None,
            "group_size": weight.group_size if weight else None,
            "skipped_reason": self.skipped_reason,
        }


def plan_tensor(
    shard: str, info: TensorInfo, facts: ModelFacts, config: QuantizationConfig, recipe: Recipe = AS_ASKED
) -> PlannedTensor:
    """Decide what becomes of one tensor, under a configuration that is adapted to the recipe."""
    coding = _coding(info, facts, config, recipe)
    reason = coding if isinstance(coding, str) else None
    quantized = None if isinstance(coding, str) else coding
    after = info.nbytes if quantized is None else recipe.nbytes(info, quantized.view, quantized.format)
    return PlannedTensor(info.name, shard, info.dtype, info.shape, info.params, info.nbytes, after, quantized, reason)


def _coding(info: TensorInfo, facts: ModelFacts, config: QuantizationConfig, recipe: Recipe) -> Coding | str:
    view = matrix_view(info, facts, config.layers)
    if isinstance(view, str):
        return view
    weight = layer_config(module_name(info.name), config)
    if isinstance(weight, str):
        return weight
    weight = recipe.settle(view, weight, config)
    fmt = resolve_format(view.rows, view.cols, weight)
    refused = recipe.refuse(info, view, fmt, facts)
    if refused is not None:
        return refused
    size = recipe.nbytes(info, view, fmt)
    if size >= info.nbytes:
        return f"would take {size} bytes instead of {info.nbytes} with these settings"
    return Coding(view, weight, fmt, config.activations if has_coded_input(info, facts) else None)
