"""Rotary positions as llama.cpp is told of them; torch-free, so that a plan can refuse what it is not told.

A position turns a pair of features by position / base^(2i / head_dim). Models that were trained on to longer contexts
turn more slowly: all pairs alike (`linear`), or the slow ones alone (`llama3`, Llama 3.1 and later). llama.cpp knows
the first by name and reads the second as one divisor for each pair, from a tensor `rope_freqs.weight`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nupes_core.errors import UnsupportedArchitectureError

TENSOR_NAME = "rope_freqs.weight"
BASE = 10_000.0
"""Where a configuration says nothing, as in transformers."""


@dataclass(frozen=True)
class Bands:
    """The three bands of `llama3`: frequencies that stay, that are divided, and those between.

    Attributes:
        factor: divisor of slow frequencies.
        low, high: turns within the original context up to which a frequency is slow, from which it is fast.
        context: positions of the original context.
    """

    factor: float
    low: float
    high: float
    context: float

    def divisor(self, period: float) -> float:
        """Return the divisor of a frequency that takes `period` positions for one radian."""
        turns = self.context / (2 * math.pi * period)
        if turns > self.high:
            return 1.0
        if turns < self.low:
            return self.factor
        share = (turns - self.low) / (self.high - self.low)
        return 1 / ((1 - share) / self.factor + share)


@dataclass(frozen=True)
class Rotary:
    """How fast the positions of a model turn.

    Attributes:
        base: of the frequencies, `rope_theta` in configurations.
        linear: what all frequencies are divided by.
        bands: of `llama3`, what slow frequencies are divided by; None: nothing.
    """

    base: float
    linear: float = 1.0
    bands: Bands | None = None

    def divisors(self, head_dim: int) -> list[float] | None:
        """Return what the frequency of each pair is divided by, [head_dim / 2]; None: they are all alike."""
        if self.bands is None:
            return None
        return [self.bands.divisor(self.base ** (2 * pair / head_dim)) for pair in range(head_dim // 2)]


def rotary(config: Mapping[str, Any], base: float = BASE) -> Rotary:
    """Read the rotary positions of a model's `config.json`, in the words of transformers 5 or 4.

    Of models whose layers have positions of two kinds, those of the layers that see everything.

    Args:
        config: content of `config.json`.
        base: where that says nothing.

    Raises:
        UnsupportedArchitectureError: a kind that llama.cpp is not told of here, or numbers that make no sense.
    """
    told = _told(config, "full_attention")
    kind = told.get("rope_type") or told.get("type") or "default"
    if not isinstance(kind, str) or kind not in KINDS:
        raise _refused(f"rotary positions of the kind {kind!r}", f" These are written: {', '.join(KINDS)}.")
    said = {name: value for name, value in {**config, **told}.items() if value is not None}
    known: dict[str, Any] = {"partial_rotary_factor": 1.0, "rope_theta": base, **said}
    if _number(known, "partial_rotary_factor") != 1:
        raise _refused("rotary positions on a part of a head")
    return KINDS[kind](told, _number(known, "rope_theta"))


def local_base(config: Mapping[str, Any]) -> float:
    """Return the base of the positions in layers with a window, which are not scaled.

    Raises:
        UnsupportedArchitectureError: they are, or it is no number.
    """
    if "rope_parameters" not in config:
        return _number({"rope_local_base_freq": BASE, **config}, "rope_local_base_freq")
    told = _told(config, "sliding_attention")
    if told.get("rope_type", "default") != "default":
        raise _refused("scaled rotary positions in layers with a window")
    return _number({"rope_theta": BASE, **told}, "rope_theta")


def _told(config: Mapping[str, Any], layers: str) -> Mapping[str, Any]:
    told = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if isinstance(told, Mapping) and layers in told:
        told = told[layers]
    if not isinstance(told, Mapping):
        raise _refused("rotary positions that are no object")
    return told


def _linear(told: Mapping[str, Any], base: float) -> Rotary:
    return Rotary(base, linear=_number(told, "factor"))


def _llama3(told: Mapping[str, Any], base: float) -> Rotary:
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    bands = Bands(*(_number(told, name) for name in names))
    if bands.low >= bands.high:
        raise _refused("rotary positions whose low_freq_factor is not below its high_freq_factor")
    return Rotary(base, bands=bands)


KINDS: Mapping[str, Callable[[Mapping[str, Any], float], Rotary]] = {
    "default": lambda told, base: Rotary(base),
    "linear": _linear,
    "llama3": _llama3,
}
"""`rope_type` of a configuration -> its reader."""


def _number(told: Mapping[str, Any], name: str) -> float:
    value = told.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise _refused(f"rotary positions whose {name} is {value!r}")
    return float(value)


def _refused(what: str, more: str = "") -> UnsupportedArchitectureError:
    return UnsupportedArchitectureError(
        f"format gguf is not written for {what}",
        hint=f"Ask for the format nupes, dense or compressed-tensors.{more}",
    )
