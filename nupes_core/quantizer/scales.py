"""Short log2 scales: a block of rows stores the octave of its largest scale, each group an index below it.

A 5–6-bit log2 scale costs at most 3 % of mean squared error and buys groups of half the size (method §1).
"""

from __future__ import annotations

import torch

from nupes_core.storage import WeightFormat

BASE_UNITS = 128
"""Units of a stored base in an octave; int16 then spans every float32."""

HEADROOM = 0.25
"""Octaves above the largest weight that the top scale reaches: where both ends of a group are equally large, the signed
layout wants a scale beyond the weight, because its shorter side ends below 1."""

TINY = 1e-30
"""Weights below this count as zero: their squares leave the range of float32."""

_LARGEST_BASE = 127 * BASE_UNITS


def block_bases(amax: torch.Tensor, fmt: WeightFormat) -> torch.Tensor:
    """Return int16 [blocks], the top scale of each block in units of 1/128 octave, from row maxima [rows]."""
    padded = torch.nn.functional.pad(amax.double(), (0, fmt.blocks * fmt.block_rows - fmt.rows))
    top = padded.view(fmt.blocks, fmt.block_rows).amax(1)
    octave = torch.where(top >= TINY, top.clamp_min(TINY).log2() + HEADROOM, 0.0)
    return (octave * BASE_UNITS).ceil().clamp_max(_LARGEST_BASE).to(torch.int16)


def index_scales(index: torch.Tensor, bases: torch.Tensor, fmt: WeightFormat) -> torch.Tensor:
    """Return the float32 scales of log2 indices int64 [n, k] under bases int16 [n]; index 0 is the scale 0.

    Every machine finds the same bits.
    """
    octave = bases.long().unsqueeze(1) - ((1 << fmt.log_bits) - 1 - index) * fmt.log_step
    return torch.where(index > 0, octave_scales(octave), 0.0)


def octave_scales(octave: torch.Tensor) -> torch.Tensor:
    """Return float32 2^(octave/128) of int64: a rounded fraction of an octave times a power of two."""
    fractions = torch.exp2(torch.arange(BASE_UNITS, dtype=torch.float64) / BASE_UNITS).float().to(octave.device)
    return torch.ldexp(fractions[octave % BASE_UNITS], octave // BASE_UNITS)


def decode_scales(words: torch.Tensor, bases: torch.Tensor, fmt: WeightFormat) -> tuple[torch.Tensor, torch.Tensor]:
    """Split stored words.

    Args:
        words: int64 [n, groups].
        bases: int16 [n], the base of each row's block.
        fmt: gives the bits of the word: exponent choice, sign, log2 index, from the most significant.

    Returns:
        float32 [n, groups] signed scales and int64 [n, groups] exponent choices.
    """
    index, sign, choice = split_words(words, fmt)
    return sign * index_scales(index, bases, fmt), choice


def split_words(words: torch.Tensor, fmt: WeightFormat) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return log2 index (int64), sign (float32 ±1) and exponent choice (int64) of stored words int64 [n, groups]."""
    negative = (words >> fmt.log_bits) & 1 if fmt.has_sign else torch.zeros_like(words)
    index, choice = words & ((1 << fmt.log_bits) - 1), words >> (fmt.word_bits - fmt.choice_bits)
    return index, 1.0 - 2 * negative, choice
