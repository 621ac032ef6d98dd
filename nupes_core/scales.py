"""Short log2 scales: a block of rows stores the octave of its largest scale, each group an index below it.

A 5–6-bit log2 scale costs at most 3 % of mean squared error and buys groups of half the size (method §1).
"""

from __future__ import annotations

import torch

from nupes_core.storage import WeightFormat

BASE_STEP = 1 / 128
"""Octaves of one unit of a stored base; int16 then spans every float32."""

HEADROOM = 0.25
"""Octaves above the largest weight that the top scale reaches: where both ends of a group are equally large, the signed
layout wants a scale beyond the weight, because its shorter side ends below 1."""


def block_bases(amax: torch.Tensor, fmt: WeightFormat) -> torch.Tensor:
    """Return int16 [blocks], the top scale of each block in units of `BASE_STEP` octaves, from row maxima [rows]."""
    padded = torch.nn.functional.pad(amax.double(), (0, fmt.blocks * fmt.block_rows - fmt.rows))
    top = padded.view(fmt.blocks, fmt.block_rows).amax(1)
    octave = torch.where(top > 0, top.clamp_min(1e-300).log2() + HEADROOM, 0.0)
    return (octave / BASE_STEP).ceil().to(torch.int16)


def decode_scales(words: torch.Tensor, bases: torch.Tensor, fmt: WeightFormat) -> tuple[torch.Tensor, torch.Tensor]:
    """Split stored words.

    Args:
        words: int64 [n, groups].
        bases: int16 [n], the base of each row's block.
        fmt: gives the bits of the word: exponent choice, sign, log2 index, from the most significant.

    Returns:
        float32 [n, groups] signed scales and int64 [n, groups] exponent choices.
    """
    index = words & ((1 << fmt.log_bits) - 1)
    sign = 1 - 2 * ((words >> fmt.log_bits) & 1) if fmt.layout == "signed" else torch.ones_like(words)
    choice = words >> (fmt.word_bits - fmt.choice_bits)
    octave = bases.double().unsqueeze(1) * BASE_STEP - ((1 << fmt.log_bits) - 1 - index) * fmt.log_step
    scale = torch.where(index > 0, torch.exp2(octave), 0.0) * sign
    return scale.float(), choice
