"""How the weights of a layer spread over its grid, in a few numbers."""

from __future__ import annotations

import torch

from nupes_core.quantizer.weight import QuantizedWeight

BINS = 64
"""Of equal width over [-1, 1]; 0 is an edge."""

SAMPLE_WEIGHTS = 1 << 15
"""Of a larger matrix every n-th row is counted, from the first on, so that about so many weights are."""


def weight_histogram(w: torch.Tensor, weight: QuantizedWeight) -> tuple[int, ...]:
    """Count the weights over the scale of their group: what the grid rounds to its levels, which lie in [-1, 1].

    Levels with a minimum (super-blocks) lie around another point than 0. A scale may be negative (layout `signed`).
    What lies beyond ±1 is clipped, and counted in the outer bins; a weight whose group has the scale 0 counts as 0. The
    same matrix gives the same counts, whatever the number of threads.

    Args:
        w: [rows, cols] of any float dtype, as it was before it was quantized; never copied as a whole.
        weight: its stored form.

    Returns:
        `BINS` counts; bin i is for [2i/BINS - 1, 2(i+1)/BINS - 1).
    """
    step = min(-(-w.numel() // SAMPLE_WEIGHTS), len(w))
    centres, scales = (
        each.repeat_interleave(weight.format.group_size, 1)[:, : w.shape[1]] for each in weight.spans(step)
    )
    x = torch.where(scales == 0, 0.0, (w[::step].float() - centres) / scales)
    bins = (x.clamp_(-1, 1) + 1).mul_(BINS / 2).int().clamp_(max=BINS - 1)
    return tuple(torch.bincount(bins.flatten(), minlength=BINS).tolist())
