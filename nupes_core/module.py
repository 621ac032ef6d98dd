"""Quantize the linear and convolution layers of any torch module, in place."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from nupes_core.activations import ActivationQuantizer, dynamic_quantizer, observe, token_dims
from nupes_core.batchnorm import fold_batch_norms
from nupes_core.biascorrection import Reference, correct_biases, observe_means
from nupes_core.checkpoint import SAFETENSORS_DTYPES
from nupes_core.config import ActivationConfig, LayerOverride, QuantizationConfig, WeightConfig
from nupes_core.data.samples import Samples
from nupes_core.datadriven.driver import LayerSettings, Reporting
from nupes_core.datadriven.inmemory import TrainedLayer, train_module
from nupes_core.datadriven.layer import matrix_of
from nupes_core.errors import CalibrationError, InvalidConfigError, NoQuantizableLayersError, naming
from nupes_core.header import TensorInfo
from nupes_core.inference import output_tensors, run_samples
from nupes_core.layers import REPLACEMENTS
from nupes_core.quantizer.globalexponent import Matrix, global_exponent
from nupes_core.quantizer.histogram import weight_histogram
from nupes_core.quantizer.quality import weight_error
from nupes_core.quantizer.weight import QuantizedWeight, quantize_weight
from nupes_core.report import LayerReport, MetricCallback, Progress, ProgressCallback, Report
from nupes_core.selection import ModelFacts, layer_config, matrix_view, module_name
from nupes_core.smoothing import smooth_block
from nupes_core.storage import resolve_format, weight_nbytes

EDGE_BITS = 8
"""Bits of the first and the last layer of convolution nets (method §4): small, and more sensitive than the others."""

EXAMPLE, SMOOTHED, CORRECTED = 8, 32, 256
"""Samples that folded batch norms are checked on, outlier channels looked for in, and biases corrected by."""


@dataclass(frozen=True)
class _Layer:
    """One layer to be quantized."""

    name: str
    module: Any
    config: WeightConfig
    activation: ActivationConfig | None = None

    @property
    def matrix(self) -> torch.Tensor:
        """The weight as [rows = outputs, cols = inputs]."""
        return matrix_of(self.module)


def quantize_model(
    model: nn.Module,
    config: QuantizationConfig,
    *,
    calibration: Samples | torch.Tensor | None = None,
    progress: ProgressCallback | None = None,
    on_metric: MetricCallback | None = None,
    edge_bits: int | None = EDGE_BITS,
) -> Report:
    """Replace `nn.Linear`, `Conv1D` and `nn.Conv2d` (as rows [out, in·k·k]) by quantized modules, in place.

    A layer keeps its dtype and device. Tied weights, subclasses of these modules and bare parameters (fused experts)
    are left alone and reported; `nupes_core.quantize` covers the latter on files. Batch norms are folded first; outlier
    channels of norms are moved into the layers they feed where `activations.smooth` and data allow it. With data, the
    biases of convolution nets are corrected at the end, where that brings the outputs nearer to what they were.

    Args:
        model: any module; it is run on calibration data only.
        config: settings; `layers` selects by module name. With `weights.group_size` -1 each output channel of a
            convolution has one scale, as integer kernels want it.
        calibration: inputs of the model (a tensor: its first argument). Data-driven runs and static scales of
            activations need it; convolution nets get corrected biases from it, and more batch norms folded.
        progress: called after each layer.
        on_metric: called with the points of loss curves of data-driven runs.
        edge_bits: least bits of the first and the last layer of a convolution net (in the order of its modules), and of
            their inputs where those are quantized; an override that matches the layer wins. None treats all alike.

    Returns:
        A report with one entry for each parameter of two or more dimensions, in the order of the model.

    Raises:
        InvalidConfigError: calibration data that nothing in this configuration uses.
        CalibrationError: static activations without data, or a layer that the data does not reach.
        NoQuantizableLayersError: the selection leaves nothing; the model is unchanged.
        NumericsError: a weight holds NaN or an infinity; layers before it are quantized already.
    """
    samples = _samples(model, config, calibration)
    started = time.perf_counter()
    config = _with_edges(model, config, edge_bits)
    selected = {name: _select(model, name, parameter, config) for name, parameter in _parameters(model)}
    layers = {name: choice for name, choice in selected.items() if isinstance(choice, _Layer)}
    if not layers:
        raise NoQuantizableLayersError(
            f"{type(model).__name__} has no layer that the selection leaves in", hint="Loosen layers.exclude."
        )
    fold_batch_norms(model, None if samples is None else samples[:EXAMPLE])
    _smooth(model, list(layers.values()), samples, config)
    reference = _reference(model, list(layers.values()), samples)
    shared = global_exponent([_to_sample(layer) for layer in layers.values()], config.weights)
    trained = _train(model, list(layers.values()), samples, config, Reporting(progress, on_metric), shared)
    inputs = _input_quantizers(model, [layer for layer in layers.values() if layer.name not in trained], samples)
    skipped = {name: _skipped(model, name, str(reason)) for name, reason in selected.items() if name not in layers}
    done: dict[str, LayerReport] = {}
    for name, layer in layers.items():
        found = trained.get(layer.name) or TrainedLayer(_data_free(layer, shared), inputs.get(layer.name))
        done[name] = _replace(model, layer, found)
        (progress or (lambda _: None))(Progress("quantizing", len(done), len(layers), "layers", layer.name))
    if reference is not None:
        correct_biases(model, reference)
    reports = tuple((done | skipped)[name] for name in selected)
    return _report(model, reports, time.perf_counter() - started)


def _samples(model: nn.Module, config: QuantizationConfig, calibration: object) -> Samples | None:
    if calibration is None:
        if config.needs_calibration:
            raise CalibrationError("this configuration needs calibration data", hint="Pass calibration=inputs.")
        return None
    convolutional = any(type(module) is nn.Conv2d for module in model.modules())
    if not (config.needs_calibration or config.activations or convolutional):
        raise InvalidConfigError(
            "calibration data was given, and optimize is 'data_free'", hint="Pass calibration=None."
        )
    return calibration if isinstance(calibration, Samples) else Samples({"": torch.as_tensor(calibration)})


def _with_edges(model: nn.Module, config: QuantizationConfig, bits: int | None) -> QuantizationConfig:
    """Give the first and the last layer of a convolution net more bits, where no override of the user wins."""
    found = {name: module for name, module in model.named_modules() if type(module) in REPLACEMENTS}
    if bits is None or not _is_convolution_net(list(found.values())):
        return config
    names = list(found)
    edges = tuple(LayerOverride(f"^{re.escape(names[i])}$", bits=max(bits, config.weights.bits)) for i in (0, -1))
    return replace(config, layers=replace(config.layers, overrides=edges + config.layers.overrides))


def _is_convolution_net(layers: list[nn.Module]) -> bool:
    convolutions = sum(isinstance(layer, nn.Conv2d) for layer in layers)
    return convolutions > 0 and 2 * convolutions >= len(layers)


def _reference(model: nn.Module, layers: list[_Layer], samples: Samples | None) -> Reference | None:
    """Return what biases are corrected by; None without data, or where the model is no convolution net."""
    if samples is None or not _is_convolution_net([layer.module for layer in layers]):
        return None
    return observe_means(model, {layer.name: layer.module for layer in layers}, samples[:CORRECTED])


def _smooth(model: nn.Module, layers: list[_Layer], samples: Samples | None, config: QuantizationConfig) -> None:
    if samples is None or config.activations is None:
        return

    def run() -> torch.Tensor:
        found = output_tensors(run_samples(model, samples[:SMOOTHED]))
        return torch.cat([tensor.flatten() for tensor in found if tensor.is_floating_point()])

    smooth_block(model, run, {layer.name: layer.module for layer in layers}, config)


def _input_quantizers(
    model: nn.Module, layers: list[_Layer], samples: Samples | None
) -> dict[str, ActivationQuantizer]:
    """Return the quantizer of each layer's input, fitted to the data where there is some."""
    coded = {layer.name: layer for layer in layers if layer.activation is not None}
    if samples is None or not coded:
        return {
            name: dynamic_quantizer(layer.activation, token_dims=token_dims(layer.module))
            for name, layer in coded.items()
            if layer.activation
        }
    observers = observe(
        {name: layer.module for name, layer in coded.items()}, lambda: run_samples(model, samples), samples.mask
    )
    unseen = [name for name, each in observers.items() if not each.count]
    if unseen:
        raise CalibrationError(f"the calibration data did not reach {unseen[0]}", hint="Exclude it, or reach it.")
    return {name: observers[name].fit(layer.activation) for name, layer in coded.items() if layer.activation}


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
    return _Layer(module_path, module, weight_config, _activation(weight_config, config))


def _activation(weights: WeightConfig, config: QuantizationConfig) -> ActivationConfig | None:
    """Return how the input of a layer is coded: with no fewer bits where its weights got more than the others."""
    if config.activations is None or weights.bits <= config.weights.bits:
        return config.activations
    return replace(config.activations, bits=max(weights.bits, config.activations.bits))


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


def _data_free(layer: _Layer, shared_exponent: float | None) -> QuantizedWeight:
    with naming(layer.name):
        return quantize_weight(layer.matrix, layer.config, shared_exponent=shared_exponent)


def _train(
    model: nn.Module,
    layers: list[_Layer],
    samples: Samples | None,
    config: QuantizationConfig,
    reporting: Reporting,
    shared_exponent: float | None,
) -> dict[str, TrainedLayer]:
    """Return what training made of the layers; empty for a data-free run."""
    if config.optimize == "data_free" or samples is None:
        return {}
    settings = {layer.name: LayerSettings(layer.config, layer.activation) for layer in layers}
    return train_module(model, settings, samples, config, reporting, shared_exponent)


def _replace(model: nn.Module, layer: _Layer, found: TrainedLayer) -> LayerReport:
    matrix = layer.matrix
    quantized = REPLACEMENTS[type(layer.module)](found.weight.format, matrix.dtype, layer.module)
    quantized.quantized = found.weight
    quantized.input_quantizer = None if found.inputs is None else found.inputs.to(matrix.device)
    report = _layer_report(layer, found)
    model.set_submodule(layer.name, quantized)
    return report


def _layer_report(layer: _Layer, found: TrainedLayer) -> LayerReport:
    matrix, weight = layer.matrix, found.weight
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
        activation_bits=layer.activation.bits if layer.activation else None,
        codes_moved=found.moved,
        histogram=weight_histogram(matrix, weight),
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
