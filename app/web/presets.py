"""Wishes to start from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Preset:
    """A wish that fits many: `body` has what differs from the defaults of `JobCreate`."""

    title: str
    help: str
    body: dict[str, Any]


PRESETS = (
    Preset("4 bit, in seconds", "From the weights alone: the default.", {}),
    Preset("3 bit, small groups", "Smaller still; measure what it costs.", {"weights": {"bits": 3, "group_size": 32}}),
    Preset(
        "3 bit, learnt",
        "Codes, scales and exponents learnt block by block: minutes, and less loss at the same size.",
        {"weights": {"bits": 3}, "optimize": {"mode": "data_driven"}},
    ),
    Preset(
        "4 bit, activations 8 bit",
        "Inputs of layers are coded too, a scale for each token.",
        {"weights": {"bits": 4}, "activations": {"bits": 8}},
    ),
    Preset(
        "8 bit, nearly the same", "A quarter of float32 at hardly any loss.", {"weights": {"bits": 8, "group_size": -1}}
    ),
)
