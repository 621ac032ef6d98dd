"""The search and the decoder on torch tensors of any device: what `kernels` compiles for the CPU."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nupes_core.quantizer.grid import encode, level_lookup
from nupes_core.quantizer.packing import pack, unpack
from nupes_core.quantizer.scales import BASE_UNITS, HEADROOM, TINY, decode_scales
from nupes_core.storage import WeightFormat

__all__ = ["EncodedRows", "decode_rows", "group_codes", "group_sums", "pack", "search_rows", "unpack"]

FLOOR = 0.8
"""Share of a group's root mean square at which the search for its scale ends."""


@dataclass(frozen=True)
class EncodedRows:
    """Rows after the search.

    Attributes:
        codes: integers [n, cols].
        words: integers [n, groups], the side information of each group.
        errors: float64 [n], Σ h·(w − ŵ)² of each row.
    """

    codes: torch.Tensor
    words: torch.Tensor
    errors: torch.Tensor


@dataclass(frozen=True)
class _Groups:
    """Groups as rows: codes int64 [m, g], words int64 [m], errors float32 [m]."""

    codes: torch.Tensor
    words: torch.Tensor
    errors: torch.Tensor


def search_rows(
    w: torch.Tensor, h: torch.Tensor, bases: torch.Tensor, exponents: torch.Tensor, fmt: WeightFormat
) -> EncodedRows:
    """Find scale, sign and exponent choice of each group jointly, by trial of every scale in reach, and encode.

    Args:
        w: float32 [n, cols].
        h: float32 [cols], importance.
        bases: int16 [n], the base of each row's block.
        exponents: uint8 [n, candidates], stored exponents of each row's block.
        fmt: format of the whole weight.
    """
    padding = (0, fmt.groups * fmt.group_size - fmt.cols)
    x = torch.nn.functional.pad(w, padding).view(-1, fmt.group_size)
    weight = torch.nn.functional.pad(h, padding).view(1, -1).expand(w.shape[0], -1).reshape(-1, fmt.group_size)
    base = bases.repeat_interleave(fmt.groups)
    best = _zeros(x, weight, fmt)
    tables = level_lookup(fmt.layout, fmt.bits, w.device)[exponents.long()].repeat_interleave(fmt.groups, 0)
    for choice, table in enumerate(tables.unbind(1)):
        for word in _words(x, base, choice, fmt):
            best = _keep_better(best, _encode(x, weight, base, table, word, fmt))
    codes = best.codes.view(w.shape[0], -1)[:, : fmt.cols]
    return EncodedRows(codes, best.words.view(-1, fmt.groups), best.errors.view(-1, fmt.groups).double().sum(1))


def decode_rows(
    codes: torch.Tensor, words: torch.Tensor, bases: torch.Tensor, exponents: torch.Tensor, fmt: WeightFormat
) -> torch.Tensor:
    """Return float32 [n, cols]: the level of each code times the scale of its group."""
    scale, choice = decode_scales(words.long(), bases, fmt)
    group = torch.arange(fmt.cols, device=codes.device) // fmt.group_size
    exponent = exponents.long().gather(1, choice)
    table = level_lookup(fmt.layout, fmt.bits, codes.device)
    return table[exponent[:, group], codes.long()] * scale[:, group]


def _words(x: torch.Tensor, base: torch.Tensor, choice: int, fmt: WeightFormat) -> list[torch.Tensor]:
    """Return the words int64 [m] to try, scale by scale downwards from above the largest weight."""
    last = (1 << fmt.log_bits) - 1
    amax = x.abs().amax(1).double()
    root = x.double().square().mean(1).sqrt()
    top = last + ((_units(amax) + HEADROOM * BASE_UNITS - base) / fmt.log_step).ceil().long()
    low = last + ((_units(FLOOR * root) - base) / fmt.log_step).floor().long()
    top = torch.where(amax >= TINY, top.clamp(1, last), 0)
    low = torch.minimum(low.clamp_min(1), top)
    signs = 2 if fmt.has_sign else 1
    indices = [torch.maximum(top - down, low) for down in range(int((top - low).max()) + 1)]
    return [(choice * signs + sign << fmt.log_bits) | index for sign in range(signs) for index in indices]


def _units(x: torch.Tensor) -> torch.Tensor:
    return BASE_UNITS * x.clamp_min(TINY).log2()


def _zeros(x: torch.Tensor, h: torch.Tensor, fmt: WeightFormat) -> _Groups:
    codes = torch.full_like(x, 1 << (fmt.bits - 1), dtype=torch.int64)
    return _Groups(codes, torch.zeros_like(codes[:, 0]), (h * x * x).sum(1))


def _encode(
    x: torch.Tensor, h: torch.Tensor, base: torch.Tensor, table: torch.Tensor, words: torch.Tensor, fmt: WeightFormat
) -> _Groups:
    scale = decode_scales(words.unsqueeze(1), base, fmt)[0]
    codes = encode(torch.where(scale != 0, x / scale, 0.0), table)
    return _Groups(codes, words, (h * (x - scale * table.gather(1, codes)) ** 2).sum(1))


def _keep_better(a: _Groups, b: _Groups) -> _Groups:
    better = b.errors < a.errors
    return _Groups(
        torch.where(better.unsqueeze(1), b.codes, a.codes),
        torch.where(better, b.words, a.words),
        torch.where(better, b.errors, a.errors),
    )


def group_sums(
    x: torch.Tensor, h: torch.Tensor, inverse: torch.Tensor, offset: torch.Tensor, limits: tuple[int, int]
) -> tuple[torch.Tensor, ...]:
    """Return Σhcc, Σhcx, Σhc, Σhx and Σh of groups, each [n], for c = round((x + offset)·inverse) within limits.

    Args:
        x: float32 [n, size].
        h: float32 [n, size], weights of squared errors.
        inverse: float32 [n], of the step from one code to the next.
        offset: float32 [n].
        limits: least and largest c.
    """
    c = group_codes(x, inverse, offset, limits).float() + limits[0]
    weighted = h * c
    return (weighted * c).sum(1), (weighted * x).sum(1), weighted.sum(1), (h * x).sum(1), h.sum(1)


def group_codes(x: torch.Tensor, inverse: torch.Tensor, offset: torch.Tensor, limits: tuple[int, int]) -> torch.Tensor:
    """Return c less the least c, uint8 [n, size]; arguments as for `group_sums`."""
    c = ((x + offset.unsqueeze(1)) * inverse.unsqueeze(1)).round().clamp(*limits)
    return (c - limits[0]).to(torch.uint8)
