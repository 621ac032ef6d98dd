"""Quantize a model folder with a clock on each stage of data-driven NUPES; benchmarks/speed.py runs this as a process.

Functions of the core are wrapped from outside. A stage is charged what is spent in it and not in a stage within it, so
that the parts add up: loss checks during training count as checks. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from memory import high_water_bytes
from safetensors.torch import load_file

from nupes_core import QuantizationConfig, quantize
from nupes_core.quantizer.weight import quantize_weight

STAGES = {
    "nupes_core.pipeline": {"read_samples": "samples"},
    "nupes_core.datadriven.folder": {"open_blocks": "opening", "trace_chain": "running the streams"},
    "nupes_core.datadriven.walk": {"run_block": "running the streams"},
    "nupes_core.datadriven.blocksource": {"StreamedBlocks.materialize": "reading blocks"},
    "nupes_core.datadriven.start": {
        "quantize_weight": "search",
        "inverse_factor": "error feedback",
        "feed_back": "error feedback",
        "descend": "coordinate descent",
    },
    "nupes_core.datadriven.quantizeunit": {
        "SecondMoments.collect": "moments",
        "train": "training",
        "_UnitWork._held_out_loss": "held-out checks",
    },
}
"""Module -> what is wrapped in it -> stage. Names that the core has no more, or not yet, are passed over."""

OTHER = "everything else"


@dataclass
class Clock:
    """Processor and wall seconds by stage, without those of stages within."""

    processor: dict[str, float] = field(default_factory=dict)
    wall: dict[str, float] = field(default_factory=dict)
    _inside: list[str] = field(default_factory=lambda: [OTHER])
    _since: tuple[float, float] = field(default_factory=lambda: (time.process_time(), time.perf_counter()))

    def charge(self) -> None:
        """Book the time since the last call on the stage that runs."""
        now = time.process_time(), time.perf_counter()
        for spent, at, since in zip((self.processor, self.wall), now, self._since, strict=True):
            spent[self._inside[-1]] = spent.get(self._inside[-1], 0.0) + at - since
        self._since = now

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function with its time booked on a stage."""

        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            self.charge()
            self._inside.append(stage)
            try:
                return function(*args, **kwargs)
            finally:
                self.charge()
                self._inside.pop()

        return run

    def install(self) -> None:
        """Wrap every stage."""
        for module, functions in STAGES.items():
            for path, stage in functions.items():
                *owners, name = path.split(".")
                owner = import_module(module) if find_spec(module) else None
                for each in owners:
                    owner = getattr(owner, each, None)
                if hasattr(owner, name):
                    setattr(owner, name, self.timed(stage, getattr(owner, name)))


def run(source: Path, target: Path, config: QuantizationConfig, tokens: torch.Tensor | None) -> dict[str, Any]:
    """Quantize and return the clock, the report's totals and the process's own high-water mark of resident memory."""
    quantize_weight(torch.randn(128, 256), config.weights)  # compiles the search, or loads it
    clock = Clock()
    clock.install()
    report = quantize(source, target, config, calibration=tokens)
    clock.charge()
    return {
        "processor": clock.processor,
        "wall": clock.wall,
        "processor_seconds": sum(clock.processor.values()),
        "wall_seconds": sum(clock.wall.values()),
        "quantized_params": report.quantized_params,
        "bits_per_weight": report.bits_per_weight,
        "peak_bytes": high_water_bytes("self"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("config", type=json.loads, help="QuantizationConfig.to_dict() as JSON")
    parser.add_argument("--tokens", type=Path, help="safetensors file with 'tokens' [samples, length]")
    given = parser.parse_args()
    torch.set_num_threads(1)
    tokens = None if given.tokens is None else load_file(given.tokens)["tokens"]
    config = QuantizationConfig.from_dict(given.config)
    print(json.dumps(run(given.source, given.target, config, tokens)))


if __name__ == "__main__":
    main()
