"""Quantize the linear and convolution layers of any torch module, in place."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from nupes_core.config import QuantizationConfig, WeightConfig
from nupes_core.errors import InvalidConfigError, NoQuantizableLayersError, NumericsError
from nupes_core.globalexponent import Matrix, global_exponent
from nupes_core.header import TensorInfo
from nupes_core.layers import REPLACEMENTS, SAFETENSORS_DTYPES, QuantizedConv1D
from nupes_core.quality import weight_error
from nupes_core.report import LayerReport, Progress, ProgressCallback, Report
from nupes_core.selection import ModelFacts, layer_config, matrix_view, module_name
from nupes_core.storage import resolve_format, weight_nbytes
from nupes_core.weight import QuantizedWeight, quantize_weight


@dataclass(frozen=True)
class _Layer:
    """One layer to be quantized."""

    name: str
    module: Any
    config: WeightConfig

    @property
    def matrix(self) -> torch.Tensor:
        """The weight as [rows = outputs, cols = inputs]."""
        w: torch.Tensor = self.module.weight.detach()
        return w.T if REPLACEMENTS[type(self.module)] is QuantizedConv1D else w.flatten(1)


def quantize_model(
    model: nn.Module,
    config: QuantizationConfig,
    *,
    calibration: object | None = None,
    progress: ProgressCallback | None = None,
) -> Report:
    """Replace `nn.Linear`, GPT-2's `Conv1D` and `nn.Conv2d` (as rows [out, in·k·k]) by quantized modules, in place.

    A layer keeps its dtype and device. Tied weights, subclasses of these modules and bare parameters (fused experts)
    are left alone and reported; `nupes_core.quantize` covers the latter on files.

    Args:
        model: any module; nothing is run.
        config: settings; `layers` selects by module name.
        calibration: must be None for `data_free`.
        progress: called after each layer.

    Returns:
        A report with one entry for each parameter of two or more dimensions, in the order of the model.

    Raises:
        InvalidConfigError: calibration data for a data-free run.
        NoQuantizableLayersError: the selection leaves nothing; the model is unchanged.
        NumericsError: a weight holds NaN or an infinity; layers before it are quantized already.
    """
    if calibration is not None:
        raise InvalidConfigError(
            "calibration data was given, and optimize is 'data_free'", hint="Pass calibration=None."
        )
    started = time.perf_counter()
    selected = {name: _select(model, name, parameter, config) for name, parameter in _parameters(model)}
    layers = {name: choice for name, choice in selected.items() if isinstance(choice, _Layer)}
    if not layers:
        raise NoQuantizableLayersError(
            f"{type(model).__name__} has no layer that the selection leaves in", hint="Loosen layers.exclude."
        )
    shared = global_exponent([_to_sample(layer) for layer in layers.values()], config.weights)
    skipped = {name: _skipped(model, name, str(reason)) for name, reason in selected.items() if name not in layers}
    done: dict[str, LayerReport] = {}
    for name, layer in layers.items():
        done[name] = _quantize(model, layer, shared)
        (progress or (lambda _: None))(Progress("quantizing", len(done), len(layers), "layers", layer.name))
    reports = tuple((done | skipped)[name] for name in selected)
    return _report(model, reports, time.perf_counter() - started)


def _parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.dim() >= 2)


def _select(model: nn.Module, name: str, parameter: nn.Parameter, config: QuantizationConfig) -> _Layer | str:
    """Return the layer that owns a parameter, or the reason why it is left alone."""
    module_path, _, leaf = name.rpartition(".")
    module = model.get_submodule(module_path)
    if module is model:
        return "the model is this layer: put it into a container, so that it can be replaced"
    if leaf != "weight" or type(module) not in REPLACEMENTS:
        return f"{type(module).__name__}.{leaf}: not the weight of a linear or convolution layer"
    if sum(each is parameter for _, each in model.named_parameters(remove_duplicate=False)) > 1:
        return "tied to another parameter"
    reason = _refused_by_name(model, name, parameter, config)
    weight_config = reason or layer_config(module_name(name), config)
    if isinstance(weight_config, str):
        return weight_config
    rows, cols = _Layer(module_path, module, weight_config).matrix.shape
    if weight_nbytes(resolve_format(rows, cols, weight_config)) >= parameter.nbytes:
        return f"would not become smaller than {parameter.nbytes} bytes with these settings"
    return _Layer(module_path, module, weight_config)


def _refused_by_name(model: nn.Module, name: str, parameter: nn.Parameter, config: QuantizationConfig) -> str | None:
    """Apply the rules that checkpoints are read with (dtype, routers) to a linear layer."""
    dtype = SAFETENSORS_DTYPES.get(parameter.dtype, str(parameter.dtype))
    describe = getattr(getattr(model, "config", None), "to_dict", None)
    facts = ModelFacts() if describe is None else ModelFacts.from_config(describe())
    info = TensorInfo(name, dtype, tuple(parameter.flatten(1).shape), 0, parameter.nbytes)
    view = matrix_view(info, facts, replace(config.layers, embeddings=True))
    return view if isinstance(view, str) else None


def _to_sample(layer: _Layer) -> Matrix:
    rows, cols = layer.matrix.shape
    return Matrix(layer.name, rows, cols, lambda: layer.matrix)


def _quantize(model: nn.Module, layer: _Layer, shared_exponent: float | None) -> LayerReport:
    matrix = layer.matrix
    try:
        weight = quantize_weight(matrix, layer.config, shared_exponent=shared_exponent)
    except NumericsError as error:
        raise NumericsError(f"{layer.name}: {error.message}", hint=error.hint) from error
    quantized = REPLACEMENTS[type(layer.module)](weight.format, matrix.dtype, layer.module)
    quantized.quantized = weight
    report = _layer_report(layer, weight)
    model.set_submodule(layer.name, quantized)
    return report


def _layer_report(layer: _Layer, weight: QuantizedWeight) -> LayerReport:
    matrix = layer.matrix
    error = weight_error(matrix, weight.dequantize(matrix.dtype))
    return LayerReport(
        name=layer.name,
        shape=tuple(layer.module.weight.shape),
        params=matrix.numel(),
        bytes_before=matrix.nbytes,
        bytes_after=weight.nbytes,
        bits=weight.format.bits,
        group_size=weight.format.group_size,
        layout=weight.format.layout,
        exponent=weight.exponent,
        mse=error.mse,
        sqnr_db=error.sqnr_db,
        cosine=error.cosine,
    )


def _skipped(model: nn.Module, name: str, reason: str) -> LayerReport:
    parameter = model.get_parameter(name)
    size = parameter.nbytes
    shape = tuple(parameter.shape)
    return LayerReport(module_name(name), shape, parameter.numel(), size, size, skipped_reason=reason)


def _report(model: nn.Module, layers: tuple[LayerReport, ...], seconds: float) -> Report:
    quantized = [layer for layer in layers if layer.skipped_reason is None]
    params = sum(layer.params for layer in quantized)
    before, after = sum(layer.bytes_before for layer in quantized), sum(layer.bytes_after for layer in quantized)
    rest = [parameter for _, parameter in model.named_parameters()]
    rest_params, rest_bytes = sum(each.numel() for each in rest), sum(each.nbytes for each in rest)
    return Report(
        layers=layers,
        params=params + rest_params,
        quantized_params=params,
        bytes_before=before + rest_bytes,
        bytes_after=after + rest_bytes,
        bits_per_weight=8 * after / params,
        coverage_pct=100 * params / (params + rest_params),
        coverage_bytes_pct=100 * before / (before + rest_bytes),
        seconds=seconds,
    )
