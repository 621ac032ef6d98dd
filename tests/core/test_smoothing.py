"""Outlier channels move into the weights where that pays, and the float model stays what it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from nupes_core.config import ActivationConfig, QuantizationConfig, WeightConfig
from nupes_core.module import quantize_model
from nupes_core.smoothing import smooth_block

WIDTH = 64
CONFIG = QuantizationConfig(WeightConfig(bits=8), activations=ActivationConfig(4))


class Block(nn.Module):
    """A norm whose gains make outliers, and two layers that read it."""

    def __init__(self, norm: Any = nn.RMSNorm, outlier: float = 60.0) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.norm, self.q, self.k = norm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 32)
        with torch.no_grad():
            self.norm.weight[::16] = outlier
            for layer in (self.q, self.k):
                layer.weight[:, ::16] /= outlier

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(x)
        return torch.cat([self.q(h), self.k(h)], -1)


class Residual(Block):
    """Somebody else reads the norm too."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(x)
        return torch.cat([self.q(h) + h, self.k(h)], -1)


class PlusOne(nn.Module):
    """Gemma's norm: scales by 1 + weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.rms_norm(x, (x.shape[-1],)) * (1 + self.weight)


def _layers(block: Block) -> dict[str, nn.Module]:
    return {"q": block.q, "k": block.k}


def _x() -> torch.Tensor:
    return torch.randn(128, WIDTH, generator=torch.Generator().manual_seed(1))


def _sqnr(block: nn.Module, reference: torch.Tensor) -> float:
    quantize_model(block, CONFIG, edge_bits=None)
    with torch.no_grad():
        return float(10 * torch.log10(reference.square().sum() / (block(_x()) - reference).square().sum()))


@pytest.mark.parametrize("norm", [nn.RMSNorm, nn.LayerNorm])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_float_block_computes_what_it_did(norm: Any, dtype: torch.dtype) -> None:
    block, x = Block(norm).to(dtype), _x().to(dtype)
    with torch.no_grad():
        before = block(x)
        scales = smooth_block(block, lambda: block(x), _layers(block), CONFIG)
        assert torch.equal(block(x), before)
    assert set(scales) == {"norm", "q", "k"}
    assert torch.equal(scales["norm"].log2(), scales["norm"].log2().round())
    assert scales["q"][::16].min() > 4 * scales["q"].median()


def test_smoothing_raises_the_quality_of_the_quantized_block() -> None:
    plain, smoothed, x = Block(), Block(), _x()
    with torch.no_grad():
        reference = plain(x)
    smooth_block(smoothed, lambda: smoothed(x), _layers(smoothed), CONFIG)
    assert _sqnr(smoothed, reference) > _sqnr(plain, reference) + 6


@pytest.mark.parametrize("block", [Residual(), Block(PlusOne)], ids=["another reader", "another norm"])
def test_what_would_change_the_block_is_taken_back(block: Block) -> None:
    before = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    assert smooth_block(block, lambda: block(_x()), _layers(block), CONFIG) == {}
    assert all(torch.equal(tensor, before[name]) for name, tensor in block.state_dict().items())


def test_where_nothing_is_gained_nothing_is_touched() -> None:
    block = Block(outlier=1.0)
    eight = QuantizationConfig(WeightConfig(bits=3), activations=ActivationConfig(8))
    off = QuantizationConfig(activations=ActivationConfig(4, smooth=False))
    for config in (eight, off, QuantizationConfig()):
        before = block.norm.weight.clone()
        assert smooth_block(block, lambda: block(_x()), _layers(block), config) == {}
        assert torch.equal(block.norm.weight, before)
    assert not block.norm._forward_hooks
    assert not block.q._forward_pre_hooks


def test_a_layer_left_float_keeps_its_norm_as_it_was() -> None:
    block = Block()
    assert smooth_block(block, lambda: block(_x()), {"q": block.q}, CONFIG) == {}
