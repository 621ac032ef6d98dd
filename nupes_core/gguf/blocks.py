"""Quantized weights as blocks of llama.cpp: a float16 scale and 32 codes each."""

from __future__ import annotations

from collections.abc import Callable

import torch


def encode_blocks(codes: torch.Tensor, scales: torch.Tensor, bits: int) -> torch.Tensor:
    """Return the blocks of a matrix, uint8 [rows, bytes].

    Args:
        codes: uint8 [rows, cols], cols a multiple of 32; code minus 2^(bits−1) is the integer, but for IQ4_NL.
        scales: float16 [rows, cols/32].
        bits: 4 (`Q4_0`, `IQ4_NL`), 5 (`Q5_0`) or 8 (`Q8_0`).
    """
    blocks = codes.reshape(-1, 32)
    head = scales.reshape(-1, 1).view(torch.uint8)
    return torch.cat([head, *_PARTS[bits](blocks)], 1).view(codes.shape[0], -1)


def _nibbles(blocks: torch.Tensor) -> list[torch.Tensor]:
    """The first 16 codes in the low halves of 16 bytes, the others in the high ones."""
    return [(blocks[:, :16] & 15) | ((blocks[:, 16:] & 15) << 4)]


def _five_bits(blocks: torch.Tensor) -> list[torch.Tensor]:
    """The fifth bits first, as a bit stream of 4 bytes."""
    weights = 1 << torch.arange(8, dtype=torch.int64)
    fifth = ((blocks >> 4).long().view(-1, 4, 8) * weights).sum(2).to(torch.uint8)
    return [fifth, *_nibbles(blocks)]


def _bytes(blocks: torch.Tensor) -> list[torch.Tensor]:
    """Signed bytes: the code with its highest bit flipped."""
    return [blocks ^ 128]


_PARTS: dict[int, Callable[[torch.Tensor], list[torch.Tensor]]] = {4: _nibbles, 5: _five_bits, 8: _bytes}
