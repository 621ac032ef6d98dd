"""What a quantized weight occupies: its stored tensors and their exact bytes. Needs neither torch nor numpy."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import prod
from typing import Any

from nupes_core.config import PER_CHANNEL, WeightConfig
from nupes_core.errors import InvalidConfigError
from nupes_core.gguf.blocktypes import SUPERBLOCK, SUPERBLOCKS

DTYPE_BYTES = {"U8": 1, "I16": 2}

GROUP_CANDIDATES = 4
"""Exponents that a group chooses among (2 bits) when the scope is `group`."""

MAX_BLOCK_OVERHEAD = 1 / 64
"""Most bits per weight that the base scale and the exponents of a block of rows may cost."""

MAX_BLOCK_ROWS = 64

TensorSpec = tuple[tuple[int, ...], str]

INPUT_CODES = "input_quantizer.codes"
"""What is stored of an activation quantizer, below the name of its layer."""


@dataclass(frozen=True)
class WeightFormat:
    """All that is needed, next to the tensors, to allocate and decode one weight matrix.

    Attributes:
        rows, cols: shape of the matrix; a group never crosses a row.
        bits: code width.
        group_size: weights that share a scale; the last group of a row is shorter when it does not divide `cols`.
        layout: `signed`, `midrise`, `paper` or `IQ4_NL` (`nupes_core.quantizer.grid`), or a type of super-blocks
            (`nupes_core.gguf.blocktypes`), which says nothing by the attributes below.
        word_bits: side information of a group: exponent choice, log2 scale and, in the signed layout, its sign.
        candidates: exponents that each group chooses among: 1 or 4.
        block_rows: consecutive rows that share a base scale and the exponents; 1 on wide matrices.
    """

    rows: int
    cols: int
    bits: int
    group_size: int
    layout: str
    word_bits: int
    candidates: int
    block_rows: int

    @property
    def groups(self) -> int:
        """Groups in a row."""
        return -(-self.cols // self.group_size)

    @property
    def blocks(self) -> int:
        """Blocks of rows."""
        return -(-self.rows // self.block_rows)

    @property
    def choice_bits(self) -> int:
        """Bits of a group's exponent choice."""
        return (self.candidates - 1).bit_length()

    @property
    def has_sign(self) -> bool:
        """Whether scales are signed: the levels of the layout are not the same on both sides of 0."""
        return self.layout in ("signed", "IQ4_NL")

    @property
    def log_bits(self) -> int:
        """Bits of a group's log2 scale; index 0 is the scale 0."""
        return self.word_bits - self.choice_bits - self.has_sign

    @property
    def log_step(self) -> int:
        """1/128 octaves between neighbouring scales: 3 octaves in all up to 4 bits, 4 with 5 and 6, 8 with 7 and 8."""
        return (3 * 128) >> self.log_bits if self.log_bits <= 4 else 128 >> (self.log_bits // 2 + 1)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dict; `WeightFormat(**d)` reads it back."""
        return asdict(self)


def resolve_format(rows: int, cols: int, config: WeightConfig) -> WeightFormat:
    """Return the format of a [rows, cols] matrix; it depends on shape and config alone, so sizes are exact in advance.

    Raises:
        InvalidConfigError: a side `rows` or `cols` is below 1, or rows are no whole super-blocks of the layout.
    """
    if rows < 1 or cols < 1:
        raise InvalidConfigError(f"a weight of shape ({rows}, {cols}) has nothing to quantize")
    if config.layout in SUPERBLOCKS and cols % SUPERBLOCK:
        raise InvalidConfigError(f"layout {config.layout} needs rows of whole super-blocks of 256, not of {cols}")
    by_group = config.exponent.scope == "group" and config.exponent.mode == "search"
    candidates = GROUP_CANDIDATES if by_group else 1
    return WeightFormat(
        rows=rows,
        cols=cols,
        bits=config.bits,
        group_size=cols if config.group_size == PER_CHANNEL else min(config.group_size, cols),
        layout=_layout(config),
        word_bits=config.scale_bits,
        candidates=candidates,
        block_rows=1 if config.exponent.scope == "row" else _block_rows(cols, candidates),
    )


def tensor_specs(fmt: WeightFormat) -> dict[str, TensorSpec]:
    """Return suffix -> (shape, safetensors dtype) of every stored tensor.

    `codes` [⌈rows·cols·bits/8⌉] and `scales` [⌈rows·groups·word_bits/8⌉] are little-endian bit streams in row-major
    order (`nupes_core.quantizer.packing`); `bases` [blocks] holds 128·log2 of the largest scale of a block of rows;
    `exponents` [blocks, candidates] holds (a − 0.3)·200. Everything is per row or
    block of rows, so rows can be concatenated.
    A layout of super-blocks has one tensor: `blocks` [rows, bytes], as llama.cpp reads them.
    """
    if kind := SUPERBLOCKS.get(fmt.layout):
        return {"blocks": ((fmt.rows, kind.row_bytes(fmt.cols)), "U8")}
    return {
        "codes": ((_packed_bytes(fmt.rows * fmt.cols, fmt.bits),), "U8"),
        "scales": ((_packed_bytes(fmt.rows * fmt.groups, fmt.word_bits),), "U8"),
        "bases": ((fmt.blocks,), "I16"),
        "exponents": ((fmt.blocks, fmt.candidates), "U8"),
    }


def input_specs() -> dict[str, TensorSpec]:
    """Return name below the layer -> (shape, safetensors dtype) of what is stored of its activation quantizer.

    `input_quantizer.codes` [4]: 1024·log2 of the scale, kind (0 unsigned, 1 signed, 2 offset), zero point, and exponent
    (a − 0.3)·200. The scale is the largest magnitude where scales are static, the kept share of each token's range
    where they are dynamic.
    """
    return {INPUT_CODES: ((4,), "I16")}


def weight_nbytes(fmt: WeightFormat) -> int:
    """Return the bytes of all stored tensors, side information included, file headers not."""
    return sum(prod(shape) * DTYPE_BYTES[dtype] for shape, dtype in tensor_specs(fmt).values())


def _packed_bytes(count: int, bits: int) -> int:
    return -(-count * bits // 8)


def _layout(config: WeightConfig) -> str:
    if config.layout != "auto":
        return config.layout
    return "midrise" if config.bits == 2 else "signed"


def _block_rows(cols: int, candidates: int) -> int:
    """Return the smallest power of two of rows over which 16 bits of base and the exponents cost little enough."""
    block_rows = 1
    while (16 + 8 * candidates) / (block_rows * cols) > MAX_BLOCK_OVERHEAD and block_rows < MAX_BLOCK_ROWS:
        block_rows *= 2
    return block_rows
