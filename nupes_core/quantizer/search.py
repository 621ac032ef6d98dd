"""The data-free search for the exponent (NUPES, arXiv 2308.05600, method §2): a* = argmin Σ h·(w − ŵ)².

Scales, signs and codes are searched jointly below it, by the engine of the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import TypeVar

import torch

from nupes_core.quantizer import compiled, reference
from nupes_core.quantizer.grid import MAX_EXPONENT_CODE, exponent_code, exponent_value
from nupes_core.storage import GROUP_CANDIDATES, WeightFormat

T = TypeVar("T")

_COARSE = tuple(exponent_code(a) for a in (0.4, 0.55, 0.7, 0.85, 1.0, 1.2))
_REFINEMENTS = (16, 8, 4)
_ROW_CODES = tuple(exponent_code(0.4 + 0.1 * i) for i in range(9))
_RATIOS = (1.08, 1.14, 1.2, 1.28, 1.4)
_SHIFTS = (0.9, 0.95, 1.05, 1.1)


def engine(device: torch.device) -> ModuleType:
    """Return the module that searches, encodes and decodes on a device."""
    return compiled if device.type == "cpu" else reference


@dataclass(frozen=True)
class Sample:
    """Rows that an exponent is fitted on.

    Attributes:
        w: float32 [n, cols].
        h: float32 [cols], importance.
        bases: int16 [n], bases of the rows' blocks.
        format: of the whole weight.
    """

    w: torch.Tensor
    h: torch.Tensor
    bases: torch.Tensor
    format: WeightFormat

    def row_errors(self, codes: Sequence[int]) -> torch.Tensor:
        """Return float64 [n], the error of each row when its groups choose among the exponents `codes`."""
        choice_bits = (len(codes) - 1).bit_length()
        word_bits = self.format.word_bits - self.format.choice_bits + choice_bits
        fmt = replace(self.format, candidates=len(codes), word_bits=word_bits)
        exponents = torch.tensor(codes, dtype=torch.uint8, device=self.w.device).expand(self.w.shape[0], -1)
        errors: torch.Tensor = engine(self.w.device).search_rows(self.w, self.h, self.bases, exponents, fmt).errors
        return errors

    def error(self, codes: Sequence[int]) -> float:
        """Return the error of all rows."""
        return float(self.row_errors(codes).sum())


def fit_exponent(sample: Sample) -> float:
    """Return the one exponent of least error.

    The objective is locally convex in one unknown (arXiv 2308.05600): a coarse grid, then refinements around its best.
    """
    errors: dict[int, float] = {}

    def error(code: int) -> float:
        if code not in errors:
            errors[code] = sample.error((code,))
        return errors[code]

    best = min(_COARSE, key=error)
    for step in _REFINEMENTS:
        best = min((best, max(best - step, 0), min(best + step, MAX_EXPONENT_CODE)), key=error)
    return exponent_value(best)


def fit_candidates(sample: Sample) -> tuple[int, ...]:
    """Return the stored exponents that groups choose among: a geometric series of fitted ratio and centre."""
    centre = fit_exponent(sample)
    ratio = _least(_RATIOS, lambda r: sample.error(_series(centre, r)))
    shift = _least((1.0, *_SHIFTS), lambda s: sample.error(_series(centre * s, ratio)))
    return _series(centre * shift, ratio)


def fit_row_exponents(sample: Sample) -> torch.Tensor:
    """Return uint8 [n], the stored exponent of least error of each row."""
    errors = torch.stack([sample.row_errors((code,)) for code in _ROW_CODES])
    codes = torch.tensor(_ROW_CODES, dtype=torch.uint8, device=sample.w.device)
    return codes[errors.argmin(0)]


def _series(centre: float, ratio: float) -> tuple[int, ...]:
    middle = (GROUP_CANDIDATES - 1) / 2
    return tuple(exponent_code(centre * ratio ** (i - middle)) for i in range(GROUP_CANDIDATES))


def _least(options: Sequence[T], error: Callable[[T], float]) -> T:
    return min(options, key=error)
