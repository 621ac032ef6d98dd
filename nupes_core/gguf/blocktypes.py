"""Block types of llama.cpp that weights are written in: codes, groups and bytes. Needs neither torch nor numpy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

BLOCK = 32
"""Weights of a block that has one scale."""

SUPERBLOCK = 256
"""Weights of a super-block: its groups have short integer scales, it has a float16 scale for them."""


@dataclass(frozen=True)
class GgmlType:
    """A block type.

    Attributes:
        name: of llama.cpp.
        bits: width of a code.
        group_size: weights that share a scale.
        layout: what `WeightFormat.layout` calls it: the name of a grid, or that of the type where it has its own.
        block: weights of a block.
        nbytes: of a block, side information included.
    """

    name: str
    bits: int
    group_size: int
    layout: Literal["signed", "IQ4_NL", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
    block: int
    nbytes: int

    def row_bytes(self, cols: int) -> int:
        """Return the bytes of a row, which is a whole number of blocks."""
        return cols // self.block * self.nbytes


@dataclass(frozen=True)
class SuperType(GgmlType):
    """A type of super-blocks: ŵ = d·s·(q − zero) − dmin·m for codes q, with integers s and m for each group.

    Attributes:
        zero: code that stands for 0 where there are no minima, else 0.
        scale_range: least and largest s.
        most_min: largest m; 0 for types without minima.
    """

    zero: int
    scale_range: tuple[int, int]
    most_min: int


BLOCKS: Mapping[str, GgmlType] = {
    kind.name: kind
    for kind in (
        GgmlType("Q4_0", 4, BLOCK, "signed", BLOCK, 18),
        GgmlType("IQ4_NL", 4, BLOCK, "IQ4_NL", BLOCK, 18),
        GgmlType("Q5_0", 5, BLOCK, "signed", BLOCK, 22),
        GgmlType("Q8_0", 8, BLOCK, "signed", BLOCK, 34),
    )
}

SUPERBLOCKS: Mapping[str, SuperType] = {
    kind.name: kind
    for kind in (
        SuperType("Q2_K", 2, 16, "Q2_K", SUPERBLOCK, 84, 0, (0, 15), 15),
        SuperType("Q3_K", 3, 16, "Q3_K", SUPERBLOCK, 110, 4, (-32, 31), 0),
        SuperType("Q4_K", 4, 32, "Q4_K", SUPERBLOCK, 144, 0, (0, 63), 63),
        SuperType("Q5_K", 5, 32, "Q5_K", SUPERBLOCK, 176, 0, (0, 63), 63),
        SuperType("Q6_K", 6, 16, "Q6_K", SUPERBLOCK, 210, 32, (-128, 127), 0),
    )
}

TYPES: Mapping[str, GgmlType] = {**BLOCKS, **SUPERBLOCKS}

LAYOUTS: Mapping[str, GgmlType] = {kind.layout: kind for kind in TYPES.values() if kind.layout == kind.name}
"""Types whose codes lie on no grid of this project, by the name of their layout."""


def type_of(layout: str, bits: int) -> GgmlType:
    """Return the type that holds weights of a layout and width."""
    return LAYOUTS.get(layout) or next(kind for kind in BLOCKS.values() if (kind.layout, kind.bits) == (layout, bits))
