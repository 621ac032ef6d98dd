"""The data-free search (NUPES, arXiv 2308.05600, method §2): exponent and scales that minimise Σ h·(w − ŵ)².

This is the reference on torch tensors of any device; `nupes_core.kernels` computes the same faster on a CPU.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from nupes_core.grid import MAX_EXPONENT_CODE, encode, exponent_code, exponent_value, level_lookup
from nupes_core.scales import BASE_STEP, HEADROOM, decode_scales
from nupes_core.storage import WeightFormat

SHRINK_OCTAVES = 1.75
"""How far below the largest weight of a group its scale is searched."""

_COARSE = tuple(exponent_code(a) for a in (0.4, 0.55, 0.7, 0.85, 1.0, 1.2))
_REFINEMENTS = (16, 8, 4)
_ROW_CODES = tuple(exponent_code(0.4 + 0.05 * i) for i in range(19))


@dataclass(frozen=True)
class EncodedGroups:
    """Result of a search over n groups of g weights: codes int64 [n, g], words int64 [n], error float32 [n]."""

    codes: torch.Tensor
    words: torch.Tensor
    error: torch.Tensor


def search_groups(
    w: torch.Tensor, h: torch.Tensor, base: torch.Tensor, tables: torch.Tensor, fmt: WeightFormat
) -> EncodedGroups:
    """Find scale, sign, exponent choice and codes of each group jointly, by trial of every scale in reach.

    Args:
        w: float32 [n, g] groups, short ones padded with 0.
        h: float32 [n, g] importance, 0 on padding.
        base: int16 [n] base of the group's block.
        tables: float32 [n, candidates, 2^bits] levels.
        fmt: format of the weight.
    """
    top = _top_index(w.abs().amax(1), base, fmt)
    middle = torch.full_like(w, 1 << (fmt.bits - 1), dtype=torch.int64)
    best = EncodedGroups(middle, torch.zeros_like(top), (h * w * w).sum(1))
    for choice, table in enumerate(tables.unbind(1)):
        for sign in (0, 1) if fmt.layout == "signed" else (0,):
            for down in range(int((SHRINK_OCTAVES + HEADROOM) / fmt.log_step) + 1):
                index = (top - down).clamp(0, (1 << fmt.log_bits) - 1)
                word = (choice << (fmt.word_bits - fmt.choice_bits)) | (sign << fmt.log_bits) | index
                best = _keep_better(best, _encode(w, h, base, table, word, fmt))
    return best


def _encode(
    w: torch.Tensor, h: torch.Tensor, base: torch.Tensor, table: torch.Tensor, words: torch.Tensor, fmt: WeightFormat
) -> EncodedGroups:
    scale = decode_scales(words.unsqueeze(1), base, fmt)[0]
    codes = encode(torch.where(scale != 0, w / scale, 0.0), table)
    return EncodedGroups(codes, words, (h * (w - scale * table.gather(1, codes)) ** 2).sum(1))


def _keep_better(a: EncodedGroups, b: EncodedGroups) -> EncodedGroups:
    better = b.error < a.error
    return EncodedGroups(
        torch.where(better.unsqueeze(1), b.codes, a.codes),
        torch.where(better, b.words, a.words),
        torch.where(better, b.error, a.error),
    )


def _top_index(amax: torch.Tensor, base: torch.Tensor, fmt: WeightFormat) -> torch.Tensor:
    octave = amax.double().clamp_min(1e-300).log2() + HEADROOM - base.double() * BASE_STEP
    last = (1 << fmt.log_bits) - 1
    top = (octave / fmt.log_step).ceil().to(torch.int64) + last
    return torch.where(amax > 0, top.clamp(1, last), 0)


def fit_exponent(w: torch.Tensor, h: torch.Tensor, base: torch.Tensor, fmt: WeightFormat) -> float:
    """Return the exponent that minimises the error of all groups together.

    The objective is locally convex in one unknown (arXiv 2308.05600): a coarse grid, then refinements around its best.

    Args:
        w: float32 [n, g] groups, usually a sample; as in `search_groups`.
        h: float32 [n, g] importance.
        base: int16 [n].
        fmt: format; only one exponent is tried at a time, whatever its candidates.
    """
    errors: dict[int, float] = {}

    def error(code: int) -> float:
        if code not in errors:
            errors[code] = float(_errors(w, h, base, fmt, code).double().sum())
        return errors[code]

    best = min(_COARSE, key=error)
    for step in _REFINEMENTS:
        best = min((best, max(best - step, 0), min(best + step, MAX_EXPONENT_CODE)), key=error)
    return exponent_value(best)


def fit_row_exponents(w: torch.Tensor, h: torch.Tensor, base: torch.Tensor, fmt: WeightFormat) -> torch.Tensor:
    """Return uint8 [rows], the stored exponent of least error of each row; arguments as in `search_groups`."""
    codes = torch.tensor(_ROW_CODES, dtype=torch.uint8, device=w.device)
    errors = torch.stack([_errors(w, h, base, fmt, code).view(-1, fmt.groups).sum(1) for code in _ROW_CODES])
    return codes[errors.argmin(0)]


def _errors(w: torch.Tensor, h: torch.Tensor, base: torch.Tensor, fmt: WeightFormat, code: int) -> torch.Tensor:
    single = replace(fmt, candidates=1, word_bits=fmt.word_bits - fmt.choice_bits)
    table = level_lookup(fmt.layout, fmt.bits, w.device)[code]
    return search_groups(w, h, base, table.expand(w.shape[0], 1, -1), single).error
