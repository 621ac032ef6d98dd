"""Data-driven NUPES on a module in memory: any architecture whose blocks or layers are called once in a forward."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from nupes_core.activations import ActivationQuantizer
from nupes_core.config import QuantizationConfig
from nupes_core.data.samples import Samples
from nupes_core.datadriven.driver import Driver, LayerSettings, Reporting
from nupes_core.datadriven.units import find_units
from nupes_core.datadriven.walk import GraphWalk
from nupes_core.quantizer.weight import QuantizedWeight
from nupes_core.workfolder import WorkFolder


@dataclass(frozen=True)
class TrainedLayer:
    """What training made of a layer.

    Attributes:
        weight: stored form.
        inputs: quantizer of its input; None where that stays float.
        moved: share of codes that training changed; None without training.
    """

    weight: QuantizedWeight
    inputs: ActivationQuantizer | None
    moved: float | None = None


def train_module(
    model: nn.Module,
    settings: Mapping[str, LayerSettings],
    samples: Samples,
    config: QuantizationConfig,
    reporting: Reporting,
    shared_exponent: float | None = None,
) -> dict[str, TrainedLayer]:
    """Quantize the layers of a model by what it does on samples.

    Args:
        model: keeps its weights, but for norms where `config.training.tweak_norms` asks for it.
        settings: by module path of each layer.
        samples: inputs of the model.
        config: of the run.
        reporting: progress and curves.
        shared_exponent: for exponent scope `global`.

    Returns:
        Layers by module path, but for those of blocks that run never, or more than once in a forward.

    Raises:
        NumericsError: weights or activations are NaN or infinite.
    """
    units = find_units(model, list(settings))
    trained: dict[str, TrainedLayer] = {}
    with tempfile.TemporaryDirectory(prefix="nupes-") as folder, _kept_weights(model, settings):
        driver = Driver(
            config,
            settings,
            mask=samples.mask,
            work=WorkFolder(folder),
            identity=samples.sha256(),
            blocks=len(units),
            reporting=reporting,
            shared_exponent=shared_exponent,
        )
        for step, _, result in driver.run(GraphWalk(model, units, samples)):
            for path, weight in result.weights.items():
                quantizer = step.inputs.get(path)
                trained[step.unit.full_name(path)] = TrainedLayer(weight, quantizer, result.moved[path])
    return trained


@contextmanager
def _kept_weights(model: nn.Module, names: Mapping[str, object]) -> Iterator[None]:
    """Put the weights of layers back at the end: training leaves the decoded ones in their place."""
    layers = {name: model.get_submodule(name) for name in names}
    kept = {name: layer.get_parameter("weight").detach().clone() for name, layer in layers.items()}
    wanted = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, layer in layers.items():
                layer.get_parameter("weight").copy_(kept[name])
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(wanted[name])
