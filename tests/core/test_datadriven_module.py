"""Data-driven NUPES on modules in memory, whatever their architecture."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from nupes_core import QuantizationConfig, TrainingConfig, WeightConfig, quantize_model
from nupes_core.config import ActivationConfig
from nupes_core.report import Metric

CONFIG = QuantizationConfig(
    WeightConfig(bits=3, group_size=-1),
    optimize="data_driven",
    training=TrainingConfig(steps=12, learning_rate=0.01, batch_size=8),
)


class Residual(nn.Module):
    def __init__(self, channels: int, groups: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.second(torch.relu(self.norm(self.first(x)))))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shared, self.last = nn.Linear(32, 32), nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.shared(torch.relu(self.shared(x)))))


def conv_net(groups: int = 1) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), Residual(16, groups), Residual(16), nn.Flatten(), nn.Linear(16 * 64, 10)
    )
    return net.eval()


IMAGES = torch.randn(48, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def error(net: nn.Module, exact: torch.Tensor, inputs: torch.Tensor) -> float:
    with torch.no_grad():
        return float((net(inputs) - exact).square().mean())


@pytest.mark.parametrize("activations", [None, ActivationConfig(4, scaling="static"), ActivationConfig(4)])
@pytest.mark.parametrize("groups", [1, 16])
def test_a_convolution_net_is_nearer_to_its_outputs_than_without_data(
    groups: int, activations: ActivationConfig | None
) -> None:
    net = conv_net(groups)
    config = replace(CONFIG, activations=activations)
    exact = net(IMAGES).detach()
    free, driven, series = copy.deepcopy(net), copy.deepcopy(net), set[str]()
    quantize_model(free, replace(config, optimize="data_free"), calibration=IMAGES)
    report = quantize_model(driven, config, calibration=IMAGES, on_metric=lambda point: series.add(point.series))
    assert error(driven, exact, IMAGES) < error(free, exact, IMAGES)
    trained = {layer.name: layer.codes_moved for layer in report.layers if layer.skipped_reason is None}
    assert set(trained) == {"0", "1.first", "1.second", "2.first", "2.second", "4"}
    assert None not in trained.values()
    assert any(trained.values())
    assert {"held_out/0", "held_out/1", "held_out/2", "held_out/4"} <= series
    assert all((layer.activation_bits is None) == (activations is None) for layer in report.layers if layer.bits)


def test_the_same_run_gives_the_same_model() -> None:
    nets = [conv_net() for _ in range(2)]
    for net in nets:
        quantize_model(net, CONFIG, calibration=IMAGES)
    states = [net.state_dict() for net in nets]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_a_layer_that_runs_twice_in_a_forward_is_quantized_without_data() -> None:
    torch.manual_seed(0)
    net = Twice()
    points: list[Metric] = []
    report = quantize_model(net, CONFIG, calibration=torch.randn(32, 32), on_metric=points.append)
    assert {layer.name: layer.codes_moved is not None for layer in report.layers} == {"shared": False, "last": True}
    assert {point.series.partition("/")[2] for point in points} == {"last"}
    assert torch.isfinite(net(torch.randn(2, 32))).all()
