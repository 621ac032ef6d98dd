"""Batch norms are folded into what comes before them, and only where that changes nothing."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn

from nupes_core.batchnorm import fold_batch_norms
from nupes_core.data.samples import Samples


def _lived(model: nn.Module) -> Any:
    """Give norms the statistics and gains of a trained model."""
    torch.manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.2, 4)
            if module.affine:
                nn.init.uniform_(module.weight, -2, 2)
                nn.init.uniform_(module.bias, -1, 1)
    return model.eval()


def _kept(model: nn.Module) -> int:
    return sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


class Residual(nn.Module):
    """One norm that can be folded, one whose input the skip connection reads too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.second, self.norm2 = nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.BatchNorm2d(8, affine=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.norm1(self.first(x)))
        z = self.second(y)
        return z + self.norm2(z)


class Untraceable(Residual):
    """Looks at its numbers, which symbolic tracing cannot follow."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x if float(x.sum()) < 1e9 else -x)


@pytest.mark.parametrize("example", [None, Samples({"": torch.randn(2, 3, 6, 6)})], ids=["no data", "example"])
def test_what_alone_reads_a_convolution_is_folded(example: Samples | None) -> None:
    model, x = _lived(Residual()), torch.randn(4, 3, 6, 6)
    with torch.no_grad():
        before = model(x)
        assert fold_batch_norms(model, example) == 1
        assert (model(x) - before).abs().max() < 1e-5 * before.abs().max()
    assert isinstance(model.norm1, nn.Identity)
    assert isinstance(model.norm2, nn.BatchNorm2d)
    assert model.first.bias is not None


def test_a_model_that_cannot_be_traced_is_folded_by_the_tensors_it_passes_on() -> None:
    model, x = _lived(Untraceable()), torch.randn(4, 3, 6, 6)
    with torch.no_grad():
        before = model(x)
        assert fold_batch_norms(model) == 0
        assert fold_batch_norms(model, Samples({"": x})) == 1
        assert (model(x) - before).abs().max() < 1e-5 * before.abs().max()
    assert isinstance(model.norm2, nn.BatchNorm2d)


def test_linear_layers_are_folded_where_an_example_shows_that_it_is_the_same() -> None:
    flat = _lived(nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5)))
    other = _lived(nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5)))
    x = torch.randn(7, 6)
    with torch.no_grad():
        before = flat(x)
        assert fold_batch_norms(flat) == 0
        assert fold_batch_norms(flat, Samples({"": x})) == 1
        assert torch.allclose(flat(x), before, atol=1e-5)
        # [n, 5, 6] -> the norm sees the second dimension, which is no output of the layer
        assert fold_batch_norms(other, Samples({"": torch.randn(7, 5, 6)})) == 0
    assert _kept(other) == 1


def test_shared_layers_and_norms_without_statistics_stay() -> None:
    conv = nn.Conv2d(4, 4, 1)
    twice = _lived(nn.Sequential(conv, nn.BatchNorm2d(4), conv, nn.BatchNorm2d(4)))
    without = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)).eval()
    x = torch.randn(2, 4, 3, 3)
    for model in (twice, without):
        before, norms = model(x), _kept(model)
        assert fold_batch_norms(model, Samples({"": x})) == 0
        assert torch.equal(model(x), before)
        assert _kept(model) == norms


def test_modes_of_modules_are_left_as_they_were() -> None:
    model = _lived(Untraceable()).train()
    expected = deepcopy(model).eval()
    x = torch.randn(4, 3, 6, 6)
    fold_batch_norms(model, Samples({"": x}))
    assert model.training
    assert model.norm2.training
    with torch.no_grad():
        assert torch.allclose(model.eval()(x), expected(x), atol=1e-4)
