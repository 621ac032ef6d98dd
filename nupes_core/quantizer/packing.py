"""Bit streams: value i takes bits i·b … i·b+b−1, least significant first; only the last byte is padded."""

from __future__ import annotations

import torch

from nupes_core.errors import InvalidConfigError

BLOCK = 8
"""Values packed together: eight values of b bits are exactly b bytes."""


def packed_nbytes(count: int, bits: int) -> int:
    """Return the bytes that `count` values of `bits` bits take."""
    return -(-count * bits // 8)


def pack(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack unsigned values.

    Args:
        values: [...] integers in [0, 2^bits), flattened in row-major order.
        bits: 1 to 16.

    Returns:
        uint8 [⌈count·bits/8⌉].
    """
    _check_bits(bits)
    flat = values.reshape(-1).to(torch.int64)
    count = flat.numel()
    flat = torch.nn.functional.pad(flat, (0, -count % BLOCK)).view(-1, BLOCK)
    bit = torch.arange(bits, device=flat.device)
    # [blocks, 8, bits] of 0/1, read as [blocks, bits, 8]: the stream of bits, eight to a byte
    stream = ((flat.unsqueeze(-1) >> bit) & 1).view(-1, bits, 8)
    weight = 1 << torch.arange(8, device=flat.device)
    return (stream * weight).sum(-1).to(torch.uint8).view(-1)[: packed_nbytes(count, bits)].clone()


def unpack(packed: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """Return int64 [count], the inverse of `pack`."""
    _check_bits(bits)
    blocks = -(-count // BLOCK)
    data = torch.nn.functional.pad(packed, (0, blocks * bits - packed.numel())).view(-1, bits).to(torch.int64)
    bit = torch.arange(8, device=packed.device)
    stream = ((data.unsqueeze(-1) >> bit) & 1).view(-1, BLOCK, bits)
    weight = 1 << torch.arange(bits, device=packed.device)
    return (stream * weight).sum(-1).view(-1)[:count]


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= 16:
        raise InvalidConfigError(f"cannot pack values of {bits!r} bits; 1 to 16 are supported")
