"""The functions of `nupes_core.quantizer.reference` for CPU tensors, on the compiled kernels."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from nupes_core.quantizer import kernels
from nupes_core.quantizer.grid import exponent_value, levels
from nupes_core.quantizer.packing import packed_nbytes
from nupes_core.quantizer.reference import FLOOR, EncodedRows
from nupes_core.quantizer.scales import BASE_UNITS, HEADROOM, TINY
from nupes_core.storage import WeightFormat

CELLS = {bits: 2048 if bits <= 4 else 8192 for bits in range(2, 9)}
"""Cells over [−1, 1] that the search looks levels up by; the codes themselves are exact."""

STRIDE_UNITS = {bits: BASE_UNITS // 8 if bits <= 4 else 1 for bits in range(2, 9)}
"""1/8 octave between the scales of the first pass of a search, finer ones around the best after it. With many levels
the error jumps from scale to scale, so that each is tried.
"""


def search_rows(
    w: torch.Tensor, h: torch.Tensor, bases: torch.Tensor, exponents: torch.Tensor, fmt: WeightFormat
) -> EncodedRows:
    """See `nupes_core.quantizer.reference.search_rows`; returns codes uint8 and words uint16."""
    tables, which = _tables(exponents, fmt)
    n = w.shape[0]
    codes = np.empty((n, fmt.cols), np.uint8)
    words = np.empty((n, fmt.groups), np.uint16)
    errors = np.empty(n, np.float64)
    luts = np.stack([table[2] for table in tables])
    middles = np.stack([table[1] for table in tables])
    out = (codes, words, errors)
    x = w.contiguous().numpy()
    kernels.search_rows(x, h.contiguous().numpy(), bases.numpy(), which, luts, middles, _trials(fmt), out)
    return EncodedRows(torch.from_numpy(codes), torch.from_numpy(words), torch.from_numpy(errors))


def decode_rows(
    codes: torch.Tensor, words: torch.Tensor, bases: torch.Tensor, exponents: torch.Tensor, fmt: WeightFormat
) -> torch.Tensor:
    """See `nupes_core.quantizer.reference.decode_rows`; takes codes uint8 and words uint16."""
    tables, which = _tables(exponents, fmt)
    out = np.empty((codes.shape[0], fmt.cols), np.float32)
    levels_of = np.stack([table[0] for table in tables])
    kernels.decode_rows(codes.numpy(), words.numpy(), bases.numpy(), which, levels_of, _trials(fmt), out)
    return torch.from_numpy(out)


def pack(values: torch.Tensor, bits: int) -> torch.Tensor:
    """See `nupes_core.quantizer.packing.pack`; takes uint8 or uint16."""
    packed = np.empty(packed_nbytes(values.numel(), bits), np.uint8)
    kernels.pack_bits(values.contiguous().view(-1).numpy(), bits, packed)
    return torch.from_numpy(packed)


def unpack(packed: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """See `nupes_core.quantizer.packing.unpack`; returns uint8 up to 8 bits, uint16 beyond."""
    values = np.empty(count, np.uint8 if bits <= 8 else np.uint16)
    kernels.unpack_bits(packed.contiguous().numpy(), bits, values)
    return torch.from_numpy(values)


def group_sums(
    x: torch.Tensor, h: torch.Tensor, inverse: torch.Tensor, offset: torch.Tensor, limits: tuple[int, int]
) -> tuple[torch.Tensor, ...]:
    """See `nupes_core.quantizer.reference.group_sums`."""
    sums = np.empty((5, len(x)), np.float32)
    kernels.group_sums(x.contiguous().numpy(), h.contiguous().numpy(), _grid(inverse, offset), limits, sums)
    return tuple(torch.from_numpy(each) for each in sums)


def group_codes(x: torch.Tensor, inverse: torch.Tensor, offset: torch.Tensor, limits: tuple[int, int]) -> torch.Tensor:
    """See `nupes_core.quantizer.reference.group_codes`."""
    codes = np.empty(x.shape, np.uint8)
    kernels.group_codes(x.contiguous().numpy(), _grid(inverse, offset), limits, codes)
    return torch.from_numpy(codes)


def _grid(inverse: torch.Tensor, offset: torch.Tensor) -> kernels.Array:
    return np.stack([inverse.numpy(), offset.numpy()])


def _trials(fmt: WeightFormat) -> kernels.Trials:
    return kernels.Trials(
        group_size=fmt.group_size,
        log_bits=fmt.log_bits,
        step=fmt.log_step,
        signs=2 if fmt.has_sign else 1,
        stride=max(STRIDE_UNITS[fmt.bits] // fmt.log_step, 1),
        headroom=HEADROOM,
        floor=FLOOR,
        tiny=TINY,
    )


_Table = tuple[kernels.Array, kernels.Array, kernels.Array]


def _tables(exponents: torch.Tensor, fmt: WeightFormat) -> tuple[list[_Table], kernels.Array]:
    """Return (levels, midpoints, levels by cell) of each distinct exponent, and indices to them [n, candidates]."""
    codes, which = np.unique(exponents.numpy(), return_inverse=True)
    return [_table(fmt.layout, fmt.bits, int(code)) for code in codes], which.reshape(exponents.shape)


@lru_cache(maxsize=1024)
def _table(layout: str, bits: int, code: int) -> _Table:
    table = levels(layout, bits, torch.tensor([exponent_value(code)], dtype=torch.float64))[0].numpy()
    middles = (table[1:] + table[:-1]) / 2
    cells = CELLS[bits]
    centres = (np.arange(cells + 1) + 0.5) * (2 / cells) - 1
    return table, middles, table[np.searchsorted(middles, centres)]
