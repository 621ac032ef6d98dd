"""Moves outlier channels of activations into the weights that read them, where that lowers the error of the layers.

After SmoothQuant (arXiv 2211.10438): channel j of a norm's output is divided by s_j, column j of every layer that reads
it multiplied by s_j, with s_j = max|X_j|^α / max|W_j|^(1−α). Here α is searched for each group of layers, α = none
included, and s is rounded to powers of two: the float model then computes bit for bit what it did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from nupes_core.activations import ActivationObserver, dynamic_quantizer
from nupes_core.config import ActivationConfig, ExponentConfig, QuantizationConfig, WeightConfig
from nupes_core.datadriven.layer import matrix_of, weight_of
from nupes_core.quantizer.weight import quantize_weight
from nupes_core.selection import layer_config

ALPHAS = (0.3, 0.45, 0.6, 0.75, 0.9)
"""Shares of the range of a channel that are moved into the weights."""

GAIN = 0.95
"""Smoothing pays when the error of a group falls below this share of what it was."""

TOKENS, ROWS = 512, 256
"""Inputs and outputs of each layer that errors are measured on."""

_EXPONENT = ExponentConfig(mode="fixed", value=0.8)
"""While errors are compared; the search for the exponent takes longer than all of that."""


@dataclass
class _Group:
    """A norm, and the layers that read its output.

    Attributes:
        norm: its name in the block.
        layers: name -> layer.
        maxima: [d], largest magnitude of each channel of the norm's output.
        tokens: [at most TOKENS, d], some of these outputs.
    """

    norm: str
    layers: dict[str, nn.Module]
    maxima: torch.Tensor
    tokens: torch.Tensor


def smooth_block(
    block: nn.Module, run: Callable[[], torch.Tensor], layers: Mapping[str, nn.Module], config: QuantizationConfig
) -> dict[str, torch.Tensor]:
    """Smooth the inputs of layers that a norm feeds, in place.

    Args:
        block: holds the norms; `LayerNorm`, `RMSNorm` and whatever else scales its last dimension by a `weight`.
        run: runs the float block on calibration data and returns its output; called a few times, the results compared.
        layers: name -> layer to be quantized; names as `config.layers` knows them.
        config: of the job; says how weights and activations will be coded.

    Returns:
        Name (of a norm: in the block; of a layer: as in `layers`) -> float32 [d], s. A norm's weight and bias were
        divided by it, the columns of a layer multiplied. Empty where nothing was gained, or where the output changed
        because somebody else reads a norm or a norm is no plain scaling.
    """
    if config.activations is None or not config.activations.smooth:
        return {}
    found: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        groups, reference = _groups(block, run, layers)
        for group in groups:
            s = _best(group, config, config.activations)
            if s is not None and _apply(block, group, s, run, reference):
                found |= dict.fromkeys((group.norm, *group.layers), s)
    return found


def _groups(
    block: nn.Module, run: Callable[[], torch.Tensor], layers: Mapping[str, nn.Module]
) -> tuple[list[_Group], torch.Tensor]:
    """Run once; return norms with the layers that read the very tensor they gave, and the output of the block."""
    given: dict[str, torch.Tensor] = {}
    groups: dict[str, _Group] = {}

    def after_norm(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: torch.Tensor) -> None:
            given[name] = output

        return hook

    def before_layer(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            norm = next((norm for norm, tensor in given.items() if args and tensor is args[0]), None)
            if norm is not None:
                _observe(groups, norm, name, module, args[0])

        return hook

    with ExitStack() as stack:
        for name, module in _norms(block):
            stack.callback(module.register_forward_hook(after_norm(name)).remove)
        for name, layer in layers.items():
            if not isinstance(layer, nn.Conv2d):
                stack.callback(layer.register_forward_pre_hook(before_layer(name)).remove)
        reference = run()
    return list(groups.values()), reference


def _observe(groups: dict[str, _Group], norm: str, name: str, layer: nn.Module, x: torch.Tensor) -> None:
    rows = x.detach().flatten(0, -2).float()
    if norm not in groups:
        groups[norm] = _Group(norm, {}, torch.zeros(x.shape[-1], device=x.device), rows[:0])
    group = groups[norm]
    group.layers[name] = layer
    group.maxima = torch.maximum(group.maxima, rows.abs().amax(0))
    if next(iter(group.layers)) == name:
        picked = rows[:: max(len(rows) // TOKENS, 1)]
        # of several calls, each gives some of its tokens
        group.tokens = torch.cat([group.tokens, picked])[-TOKENS:]


def _norms(block: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield modules that hold no parameter but a vector `weight`, and maybe a `bias`."""
    for name, module in block.named_modules():
        parameters = dict(module.named_parameters())
        vectors = all(each.dim() == 1 for each in parameters.values())
        if "weight" in parameters and set(parameters) <= {"weight", "bias"} and vectors:
            yield name, module


def _best(group: _Group, config: QuantizationConfig, activations: ActivationConfig) -> torch.Tensor | None:
    """Return the scales of least error; None where none is clearly better than no smoothing."""
    trials = [_Trial(matrix_of(layer), group.tokens, _weights(name, config)) for name, layer in group.layers.items()]
    columns = torch.stack([matrix_of(layer).abs().amax(0).float() for layer in group.layers.values()]).amax(0)
    before = _error(trials, torch.ones_like(columns), group.tokens, activations)
    errors = {alpha: _error(trials, _scales(group, columns, alpha), group.tokens, activations) for alpha in ALPHAS}
    alpha = min(errors, key=lambda each: errors[each])
    return _scales(group, columns, alpha) if errors[alpha] < GAIN * before else None


def _scales(group: _Group, columns: torch.Tensor, alpha: float) -> torch.Tensor:
    """Return powers of two, 1 where a channel or its columns are zero."""
    ratio = group.maxima.double() ** alpha / columns.double().clamp_min(1e-30) ** (1 - alpha)
    live = (group.maxima > 0) & (columns > 0)
    exponent = torch.where(live, ratio.clamp_min(1e-30).log2(), 0.0)
    middle = exponent[live].median() if bool(live.any()) else exponent.new_zeros(())
    return torch.exp2(torch.where(live, exponent - middle, 0.0).round()).float()


class _Trial:
    """One layer, a sample of its rows, and what these give in float."""

    def __init__(self, matrix: torch.Tensor, tokens: torch.Tensor, weights: WeightConfig) -> None:
        self.W = matrix[:: max(len(matrix) // ROWS, 1)].float()
        self.weights = weights
        self.outputs = functional.linear(tokens, self.W)

    def error(self, s: torch.Tensor, coded: torch.Tensor) -> float:
        """Return the squared error of the outputs, relative to them, with coded inputs X/s."""
        W = quantize_weight(self.W * s, self.weights).dequantize()
        wrong = functional.linear(coded, W) - self.outputs
        return float(wrong.square().sum() / self.outputs.square().sum().clamp_min(1e-30))


def _error(trials: list[_Trial], s: torch.Tensor, tokens: torch.Tensor, activations: ActivationConfig) -> float:
    x = tokens / s
    coded = _quantizer(x, activations)(x)
    return sum(trial.error(s, coded) for trial in trials)


def _quantizer(x: torch.Tensor, activations: ActivationConfig) -> nn.Module:
    if activations.scaling == "dynamic":
        return dynamic_quantizer(activations).to(x.device)
    observer = ActivationObserver()
    observer.update(x)
    return observer.fit(activations).to(x.device)


def _weights(name: str, config: QuantizationConfig) -> WeightConfig:
    found = layer_config(name, config)
    return replace(config.weights if isinstance(found, str) else found, exponent=_EXPONENT)


def _apply(
    block: nn.Module, group: _Group, s: torch.Tensor, run: Callable[[], torch.Tensor], reference: torch.Tensor
) -> bool:
    """Move the scales; take it back if the block then computes something else."""
    norm = block.get_submodule(group.norm)
    parts = [(parameter, parameter / s.to(parameter.dtype)) for parameter in norm.parameters()]
    for layer in group.layers.values():
        moved = weight_of(layer, matrix_of(layer) * s.to(layer.weight.dtype))  # type: ignore[arg-type]
        parts.append((layer.weight, moved))  # type: ignore[arg-type]
    before = [parameter.detach().clone() for parameter, _ in parts]
    for parameter, scaled in parts:
        parameter.copy_(scaled)
    same = _same(run(), reference)
    for (parameter, _), original in zip(parts, before, strict=True):
        if not same:
            parameter.copy_(original)
    return same


def _same(found: torch.Tensor, reference: torch.Tensor) -> bool:
    """Tell whether outputs agree up to rounding: sums may be taken in another order."""
    allowed = 64 * torch.finfo(reference.dtype).eps * float(reference.abs().max())
    return float((found - reference).abs().max()) <= allowed
