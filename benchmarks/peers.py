"""Data-free quantizers of other projects on one weight matrix, with the bits that storing their result takes.

Each method maps a float32 matrix [rows, cols] to (dequantized float32 matrix, stored bits). Scales and zeros are
counted, and rounded, as float16 unless the project itself fixes something else.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

GROUP = 64

Method = Callable[[torch.Tensor], tuple[torch.Tensor, int]]


def round_to_nearest(w: torch.Tensor, bits: int) -> tuple[torch.Tensor, int]:
    """Asymmetric: float16 scale and an integer zero point of `bits` bits for each group of a row."""
    x = torch.nn.functional.pad(w, (0, -w.shape[1] % GROUP)).view(-1, GROUP)
    low, high = x.amin(1, keepdim=True).clamp_max(0), x.amax(1, keepdim=True).clamp_min(0)
    scale = ((high - low) / (2**bits - 1)).half().float().clamp_min(1e-8)
    zero = (-low / scale).round()
    codes = ((x / scale).round() + zero).clamp(0, 2**bits - 1)
    decoded = ((codes - zero) * scale).view(w.shape[0], -1)[:, : w.shape[1]]
    return decoded.contiguous(), w.numel() * bits + x.shape[0] * (16 + bits)


def hqq(w: torch.Tensor, bits: int, axis: int) -> tuple[torch.Tensor, int]:
    """HQQ, float16 scale and zero; axis 1 groups along the inputs, axis 0 (its best quality) along the outputs."""
    from hqq.core.quantize import Quantizer

    codes, meta = Quantizer.quantize(
        w.clone(), nbits=bits, group_size=GROUP, axis=axis, device="cpu", compute_dtype=torch.float32
    )
    groups = meta["scale"].numel()
    meta["scale"], meta["zero"] = meta["scale"].half().float(), meta["zero"].half().float()
    return Quantizer.dequantize(codes, meta).float().view(w.shape), w.numel() * bits + groups * 32


def nf4(w: torch.Tensor) -> tuple[torch.Tensor, int]:
    """NF4 of bitsandbytes, which stores a float32 maximum for each block of 64."""
    from bitsandbytes import functional

    codes, state = functional.quantize_nf4(w.clone(), blocksize=GROUP)
    return functional.dequantize_nf4(codes, state).float(), w.numel() * 4 + -(-w.numel() // GROUP) * 32


def quanto(w: torch.Tensor, bits: int) -> tuple[torch.Tensor, int]:
    """Quanto with its default optimizer; it takes group 64 only where that divides the row, else one group per row."""
    from optimum.quanto import MaxOptimizer, qint2, qint4, quantize_weight

    kind = {2: qint2, 4: qint4}[bits]
    group = GROUP if w.shape[1] % GROUP == 0 else None
    scale, shift = MaxOptimizer()(w, kind, 0, group)
    scale, shift = scale.half().float(), shift.half().float()
    decoded = quantize_weight(w, kind, axis=0, scale=scale, shift=shift, group_size=group).dequantize()
    return decoded, w.numel() * bits + scale.numel() * 32


PEERS: dict[int, dict[str, Method]] = {
    bits: {
        "RTN": partial(round_to_nearest, bits=bits),
        "HQQ": partial(hqq, bits=bits, axis=1),
        "HQQ, axis 0": partial(hqq, bits=bits, axis=0),
        **({"NF4": nf4} if bits == 4 else {}),
        **({"quanto": partial(quanto, bits=bits)} if bits != 3 else {}),
    }
    for bits in (4, 3, 2)
}
