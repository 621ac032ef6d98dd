from __future__ import annotations

import pytest
import torch

from nupes_core.config import WeightConfig
from nupes_core.quantizer import histogram
from nupes_core.quantizer.histogram import BINS, weight_histogram
from nupes_core.quantizer.weight import QuantizedWeight, quantize_weight


def normal(rows: int, cols: int) -> torch.Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(3))


def counted(w: torch.Tensor, weight: QuantizedWeight) -> list[int]:
    """The same by another way: float64, group by group, bins found by their edges."""
    size, edges = weight.format.group_size, torch.linspace(-1, 1, BINS + 1, dtype=torch.float64)
    found = torch.zeros(BINS, dtype=torch.int64)
    for row, scales in zip(w, weight.scales(), strict=True):
        for group, scale in zip(row.split(size), scales, strict=True):
            x = (group.double() / scale.double() if scale else torch.zeros(len(group))).clamp(-1, 1 - 1e-9)
            found += torch.bincount(torch.bucketize(x, edges, right=True) - 1, minlength=BINS)
    return found.tolist()


@pytest.mark.parametrize("layout", ["signed", "midrise", "paper"])
@pytest.mark.parametrize("cols", [64, 50])
def test_weights_are_counted_over_the_scale_of_their_group(layout: str, cols: int) -> None:
    w = normal(24, cols)
    w[3] = 0
    weight = quantize_weight(w, WeightConfig(bits=3, group_size=16, layout=layout))
    counts = weight_histogram(w, weight)
    assert sum(counts) == w.numel()
    # float32 may put a weight on the other side of an edge
    assert sum(abs(a - b) for a, b in zip(counts, counted(w, weight), strict=True)) <= 4


def test_a_weight_is_counted_near_the_level_it_becomes() -> None:
    w = normal(16, 64)
    weight = quantize_weight(w, WeightConfig(bits=8, group_size=64))
    before, after = (torch.tensor(weight_histogram(each, weight)) for each in (w, weight.dequantize()))
    assert float((before.cumsum(0) - after.cumsum(0)).abs().max()) <= 0.03 * w.numel()


def test_of_a_large_matrix_every_nth_row_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    w = normal(40, 32)
    weight = quantize_weight(w, WeightConfig(bits=4, group_size=32))
    monkeypatch.setattr(histogram, "SAMPLE_WEIGHTS", 10 * 32)
    assert sum(weight_histogram(w, weight)) == 10 * 32
    untouched = w.clone()
    w[1::4] = w[2::4] = w[3::4] = 1e9
    assert weight_histogram(w, weight) == weight_histogram(untouched, weight)


def test_what_lies_beyond_the_grid_is_counted_at_its_ends() -> None:
    w = normal(8, 64)
    weight = quantize_weight(w, WeightConfig(bits=4, group_size=64))
    counts = weight_histogram(1e6 * w.abs() * weight.scales().sign(), weight)
    assert counts[-1] == sum(counts) == w.numel()
