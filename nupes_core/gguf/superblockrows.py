"""Rows of a matrix as super-blocks: found, taken over from codes that were learnt, decoded."""

from __future__ import annotations

import torch

from nupes_core.gguf.blocktypes import SUPERBLOCK, SuperType
from nupes_core.gguf.superblocks import pack_superblocks, unpack_superblocks
from nupes_core.gguf.superblocksearch import Grid, SuperBlocks, search

AT_ONCE = 1024
"""Super-blocks that are searched at once: they fit the cache, and have too few groups for torch to start threads."""


def encode_rows(w: torch.Tensor, h: torch.Tensor, kind: SuperType, scales: torch.Tensor | None = None) -> torch.Tensor:
    """Return the blocks of rows, uint8 [n, bytes].

    Args:
        w: float32 [n, cols], cols a multiple of 256.
        h: float32 [cols], weight of each column's squared error.
        kind: the type.
        scales: float32 [n, groups], signed, where `w` lies on the uniform grid of layout `signed` already.
    """
    x = w.reshape(-1, SUPERBLOCK // kind.group_size, kind.group_size)
    weights = h.expand(w.shape).reshape(x.shape)
    start = None if scales is None else _grid(scales.reshape(x.shape[:2]), kind)
    parts = [slice(first, first + AT_ONCE) for first in range(0, len(x), AT_ONCE)]
    found = (
        search(x[part], weights[part], kind, None if start is None else Grid(start.step[part], start.offset[part]))
        for part in parts
    )
    return torch.cat([pack_superblocks(blocks, kind) for blocks in found]).view(w.shape[0], -1)


def decode_rows(packed: torch.Tensor, kind: SuperType) -> torch.Tensor:
    """Return float32 [n, cols]."""
    return _unpack(packed, kind).decode(kind).view(packed.shape[0], -1)


def row_spans(packed: torch.Tensor, kind: SuperType) -> tuple[torch.Tensor, torch.Tensor]:
    """Return centre and (signed) half width of the levels of each group, float32 [n, groups]."""
    blocks = _unpack(packed, kind)
    steps = blocks.steps()
    if kind.zero:
        centres, halves = torch.zeros_like(steps), steps * kind.zero
    else:
        halves = steps * (((1 << kind.bits) - 1) / 2)
        centres = halves - blocks.offsets()
    return centres.view(packed.shape[0], -1), halves.view(packed.shape[0], -1)


def _unpack(packed: torch.Tensor, kind: SuperType) -> SuperBlocks:
    return unpack_superblocks(packed.reshape(-1, kind.nbytes), kind)


def _grid(scales: torch.Tensor, kind: SuperType) -> Grid:
    """Return the grid of a type that has the levels k/2^(bits−1)·scale, k from −2^(bits−1) to 2^(bits−1)−1."""
    half = 1 << (kind.bits - 1)
    step = scales / half
    if kind.zero:
        return Grid(step, torch.zeros_like(step))
    return Grid(step.abs(), step.abs() * torch.where(step < 0, half - 1, half))
