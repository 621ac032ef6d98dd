"""Speed of data-free quantizers on one core: millions of parameters per second of processor time, 4 bits, group 64.

.venv-bench/bin/python benchmarks/speed_datafree.py
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from peers import PEERS

from nupes_core import ExponentConfig, WeightConfig
from nupes_core.quantizer.weight import quantize_weight

SHAPE = (2048, 4096)


def speeds() -> dict[str, float]:
    """Return the rates on a [2048, 4096] matrix; a first call on a small one loads and compiles what is needed."""
    torch.set_num_threads(1)
    fine = WeightConfig(group_size=16, scale_bits=7, exponent=ExponentConfig(scope="group"))
    stored = quantize_weight(torch.randn(SHAPE), WeightConfig())
    methods: dict[str, Callable[[torch.Tensor], object]] = {
        "NUPES, default (group 64)": lambda w: quantize_weight(w, WeightConfig()),
        "NUPES, equal bits (group 16)": lambda w: quantize_weight(w, fine),
        **{name: PEERS[4][name] for name in ("HQQ", "NF4", "RTN")},
        "NUPES, decoding": lambda _: stored.dequantize(),
    }
    return {name: _rate(method) for name, method in methods.items()}


def _rate(method: Callable[[torch.Tensor], object]) -> float:
    w = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    method(w[:128, :256].contiguous())
    started = time.process_time()
    method(w)
    return w.numel() / (time.process_time() - started) / 1e6


def speed_table(speed: dict[str, float]) -> str:
    """Return a Markdown table."""
    rows = [f"| {name} | {rate:.1f} |" for name, rate in speed.items()]
    return "\n".join(["| method | M parameters/s per core |", "|---|---|", *rows])


if __name__ == "__main__":
    print(speed_table(speeds()))
