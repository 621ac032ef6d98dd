"""Super-blocks of llama.cpp (`Q2_K` to `Q6_K`) as bytes, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

from nupes_core.gguf.blocktypes import SUPERBLOCK, SuperType
from nupes_core.gguf.superblocksearch import SuperBlocks


class _Layout(NamedTuple):
    """Writes and reads the bytes of a type; the reader takes uint8 [n, bytes]."""

    write: Callable[[SuperBlocks], list[torch.Tensor]]
    read: Callable[[torch.Tensor], SuperBlocks]


def pack_superblocks(blocks: SuperBlocks, kind: SuperType) -> torch.Tensor:
    """Return uint8 [n, bytes of a super-block]."""
    return torch.cat(_LAYOUTS[kind.name].write(blocks), 1)


def unpack_superblocks(packed: torch.Tensor, kind: SuperType) -> SuperBlocks:
    """Return the inverse of `pack_superblocks` for uint8 [n, bytes of a super-block]."""
    return _LAYOUTS[kind.name].read(packed)


def _fold(values: torch.Tensor, parts: int, width: int, bits: int) -> torch.Tensor:
    """Lay `parts` runs of `width` values over each other: value p·width + i takes bits p·bits… of byte i of its run."""
    runs = values.reshape(len(values), -1, parts, width)
    folded = torch.zeros_like(runs[:, :, 0])
    for part in range(parts):
        folded |= runs[:, :, part] << (bits * part)
    return folded.flatten(1)


def _unfold(folded: torch.Tensor, parts: int, width: int, bits: int) -> torch.Tensor:
    """Return uint8 [n, values], the inverse of `_fold`; values are `bits` wide."""
    runs = folded.reshape(len(folded), -1, width)
    mask = (1 << bits) - 1
    return torch.stack([(runs >> (bits * part)) & mask for part in range(parts)], 2).flatten(1)


def _split(packed: torch.Tensor, *sizes: int) -> tuple[torch.Tensor, ...]:
    """Return uint8 [n, size] of each size."""
    return torch.split_with_sizes(packed, sizes, 1)


def _bytes(x: torch.Tensor) -> torch.Tensor:
    """Return float16 [n] as uint8 [n, 2]."""
    return x.contiguous().unsqueeze(1).view(torch.uint8)


def _halves(packed: torch.Tensor) -> torch.Tensor:
    """Return the inverse of `_bytes`."""
    return packed.contiguous().view(torch.float16).squeeze(1)


def _codes(blocks: SuperBlocks) -> torch.Tensor:
    return blocks.codes.flatten(1)


def _without_minima(codes: torch.Tensor, scales: torch.Tensor, d: torch.Tensor) -> SuperBlocks:
    zeros = torch.zeros_like(scales)
    return SuperBlocks(_grouped(codes, scales), scales, zeros, d, torch.zeros_like(d))


def _grouped(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    return codes.view(*scales.shape, SUPERBLOCK // scales.shape[1])


def _write_q2(blocks: SuperBlocks) -> list[torch.Tensor]:
    nibbles = (blocks.scales | (blocks.mins << 4)).to(torch.uint8)
    return [nibbles, _fold(_codes(blocks), 4, 32, 2), _bytes(blocks.d), _bytes(blocks.dmin)]


def _read_q2(packed: torch.Tensor) -> SuperBlocks:
    nibbles, codes, d, dmin = _split(packed, 16, 64, 2, 2)
    scales, mins = (nibbles & 15).to(torch.int16), (nibbles >> 4).to(torch.int16)
    return SuperBlocks(_grouped(_unfold(codes, 4, 32, 2), scales), scales, mins, _halves(d), _halves(dmin))


def _write_q3(blocks: SuperBlocks) -> list[torch.Tensor]:
    codes, scales = _codes(blocks), (blocks.scales + 32).to(torch.uint8)
    high, low = _fold(codes >> 2, 8, 32, 1), _fold(codes & 3, 4, 32, 2)
    return [high, low, _fold(scales & 15, 2, 8, 4), _fold(scales >> 4, 4, 4, 2), _bytes(blocks.d)]


def _read_q3(packed: torch.Tensor) -> SuperBlocks:
    high, low, low_scales, high_scales, d = _split(packed, 32, 64, 8, 4, 2)
    codes = _unfold(low, 4, 32, 2) | (_unfold(high, 8, 32, 1) << 2)
    scales = _unfold(low_scales, 2, 8, 4) | (_unfold(high_scales, 4, 4, 2) << 4)
    return _without_minima(codes, scales.to(torch.int16) - 32, _halves(d))


def _write_pairs(blocks: SuperBlocks) -> torch.Tensor:
    """Return eight scales and minima of 6 bits in 12 bytes: four whole pairs, under the high bits of the others."""
    scales, mins = blocks.scales.to(torch.uint8), blocks.mins.to(torch.uint8)
    first = [values[:, :4] | (values[:, 4:] >> 4 << 6) for values in (scales, mins)]
    return torch.cat([*first, (scales[:, 4:] & 15) | (mins[:, 4:] & 15) << 4], 1)


def _read_pairs(packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scales, mins, low = _split(packed, 4, 4, 4)
    pairs = ((scales, low & 15), (mins, low >> 4))
    found = [torch.cat([first & 63, second | (first >> 6 << 4)], 1) for first, second in pairs]
    return found[0].to(torch.int16), found[1].to(torch.int16)


def _write_q4(blocks: SuperBlocks) -> list[torch.Tensor]:
    return [_bytes(blocks.d), _bytes(blocks.dmin), _write_pairs(blocks), _fold(_codes(blocks), 2, 32, 4)]


def _read_q4(packed: torch.Tensor) -> SuperBlocks:
    d, dmin, pairs, codes = _split(packed, 2, 2, 12, 128)
    scales, mins = _read_pairs(pairs)
    return SuperBlocks(_grouped(_unfold(codes, 2, 32, 4), scales), scales, mins, _halves(d), _halves(dmin))


def _write_q5(blocks: SuperBlocks) -> list[torch.Tensor]:
    codes = _codes(blocks)
    fifth, low = _fold(codes >> 4, 8, 32, 1), _fold(codes & 15, 2, 32, 4)
    return [_bytes(blocks.d), _bytes(blocks.dmin), _write_pairs(blocks), fifth, low]


def _read_q5(packed: torch.Tensor) -> SuperBlocks:
    d, dmin, pairs, fifth, low = _split(packed, 2, 2, 12, 32, 128)
    scales, mins = _read_pairs(pairs)
    codes = _unfold(low, 2, 32, 4) | (_unfold(fifth, 8, 32, 1) << 4)
    return SuperBlocks(_grouped(codes, scales), scales, mins, _halves(d), _halves(dmin))


def _write_q6(blocks: SuperBlocks) -> list[torch.Tensor]:
    codes = _codes(blocks)
    scales = blocks.scales.to(torch.int8).view(torch.uint8)
    return [_fold(codes & 15, 2, 64, 4), _fold(codes >> 4, 4, 32, 2), scales, _bytes(blocks.d)]


def _read_q6(packed: torch.Tensor) -> SuperBlocks:
    low, high, scales, d = _split(packed, 128, 64, 16, 2)
    codes = _unfold(low, 2, 64, 4) | (_unfold(high, 4, 32, 2) << 4)
    return _without_minima(codes, scales.contiguous().view(torch.int8).to(torch.int16), _halves(d))


_LAYOUTS: Mapping[str, _Layout] = {
    "Q2_K": _Layout(_write_q2, _read_q2),
    "Q3_K": _Layout(_write_q3, _read_q3),
    "Q4_K": _Layout(_write_q4, _read_q4),
    "Q5_K": _Layout(_write_q5, _read_q5),
    "Q6_K": _Layout(_write_q6, _read_q6),
}
