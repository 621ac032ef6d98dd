"""Quantize one weight matrix to stored tensors, and back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from nupes_core.config import WeightConfig
from nupes_core.errors import NumericsError
from nupes_core.grid import exponent_code, exponent_value, level_lookup
from nupes_core.packing import pack, unpack
from nupes_core.scales import block_bases, decode_scales
from nupes_core.search import fit_exponent, fit_row_exponents, search_groups
from nupes_core.storage import WeightFormat, resolve_format, weight_nbytes

CHUNK_WEIGHTS = 1 << 20
"""Weights worked on at once: temporaries stay below about 100 MB whatever the size of the matrix."""

SAMPLE_WEIGHTS = 1 << 16
"""Weights on which the exponent is fitted; the optimum is flat."""

GROUP_SPREAD = (0.6, 0.85, 1.15, 1.6)
"""The exponents that groups choose among, over that of the layer (scope `group`)."""


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight matrix [rows, cols] in the stored form.

    Attributes:
        format: how to read the tensors.
        tensors: suffix -> tensor, exactly as `nupes_core.storage.tensor_specs` lists them.
    """

    format: WeightFormat
    tensors: dict[str, torch.Tensor]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return weight_nbytes(self.format)

    @property
    def exponent(self) -> float:
        """The exponent, or its mean where the scope is finer than the layer."""
        return exponent_value(0) + float(self.tensors["exponents"].double().mean()) * (
            exponent_value(1) - exponent_value(0)
        )

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Return the [rows, cols] matrix, decoded chunk by chunk."""
        fmt = self.format
        out = torch.empty(fmt.rows, fmt.cols, dtype=dtype, device=self.tensors["codes"].device)
        for start, stop in _row_chunks(fmt):
            out[start:stop] = _decode_rows(self, start, stop).to(dtype)
        return out


def quantize_weight(
    w: torch.Tensor,
    config: WeightConfig,
    *,
    importance: torch.Tensor | None = None,
    shared_exponent: float | None = None,
) -> QuantizedWeight:
    """Quantize a matrix without data.

    Args:
        w: [rows, cols] of any float dtype; never copied as a whole.
        config: bits, group size, exponent scope.
        importance: [cols] non-negative weight of each input's squared error; None weighs all alike.
        shared_exponent: use this exponent instead of a search (scope `global`).

    Raises:
        NumericsError: `w` holds NaN or an infinity.
        InvalidConfigError: `w` is empty.
    """
    fmt = resolve_format(w.shape[0], w.shape[1], config)
    bases = block_bases(_row_amax(w, fmt), fmt)
    h = torch.ones(fmt.cols, device=w.device) if importance is None else importance.float().to(w.device)
    exponents = _exponents(w, h, bases, fmt, config, shared_exponent)
    parts = [
        _encode_rows(_take(w, h, bases, fmt, torch.arange(start, stop, device=w.device)), exponents, fmt)
        for start, stop in _row_chunks(fmt)
    ]
    codes, words = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return QuantizedWeight(fmt, {"codes": codes, "scales": words, "bases": bases, "exponents": exponents})


@dataclass(frozen=True)
class _Rows:
    """Some rows in groups: w and h float32 [n·groups, g], padded with 0; base int16 and block int64 [n·groups]."""

    w: torch.Tensor
    h: torch.Tensor
    base: torch.Tensor
    block: torch.Tensor


def _row_chunks(fmt: WeightFormat) -> Iterator[tuple[int, int]]:
    """Yield row ranges that start on whole bytes of both bit streams and on whole blocks."""
    unit = max(8, fmt.block_rows)
    step = max(CHUNK_WEIGHTS // fmt.cols // unit, 1) * unit
    for start in range(0, fmt.rows, step):
        yield start, min(start + step, fmt.rows)


def _row_amax(w: torch.Tensor, fmt: WeightFormat) -> torch.Tensor:
    parts = [w[start:stop].abs().amax(1).float() for start, stop in _row_chunks(fmt)]
    amax = torch.cat(parts)
    if not bool(amax.isfinite().all()):
        row = int((~amax.isfinite()).nonzero()[0])
        raise NumericsError(
            f"row {row} of the weight holds NaN or an infinity",
            hint="The checkpoint is damaged or was saved after a diverged training; there is nothing to quantize.",
        )
    return amax


def _sample_rows(fmt: WeightFormat, device: torch.device) -> torch.Tensor:
    count = min(fmt.rows, max(SAMPLE_WEIGHTS // fmt.cols, 1))
    return torch.arange(count, device=device) * fmt.rows // count


def _take(w: torch.Tensor, h: torch.Tensor, bases: torch.Tensor, fmt: WeightFormat, rows: torch.Tensor) -> _Rows:
    padding = (0, fmt.groups * fmt.group_size - fmt.cols)
    groups = torch.nn.functional.pad(w[rows].float(), padding).view(-1, fmt.group_size)
    weights = torch.nn.functional.pad(h, padding).expand(len(rows), -1).reshape(-1, fmt.group_size)
    blocks = (rows // fmt.block_rows).repeat_interleave(fmt.groups)
    return _Rows(groups, weights, bases[blocks], blocks)


def _exponents(
    w: torch.Tensor, h: torch.Tensor, bases: torch.Tensor, fmt: WeightFormat, config: WeightConfig, shared: float | None
) -> torch.Tensor:
    """Return uint8 [blocks, candidates]."""
    a = config.exponent.value if config.exponent.mode == "fixed" else shared
    if a is None and config.exponent.scope == "row":
        chunks = (torch.arange(start, stop, device=w.device) for start, stop in _row_chunks(fmt))
        rows = (_take(w, h, bases, fmt, chunk) for chunk in chunks)
        return torch.cat([fit_row_exponents(r.w, r.h, r.base, fmt) for r in rows]).unsqueeze(1)
    if a is None:
        sample = _take(w, h, bases, fmt, _sample_rows(fmt, w.device))
        a = fit_exponent(sample.w, sample.h, sample.base, fmt)
    spread = GROUP_SPREAD if fmt.candidates > 1 else (1.0,)
    codes = torch.tensor([exponent_code(a * factor) for factor in spread], dtype=torch.uint8, device=w.device)
    return codes.expand(fmt.blocks, -1).contiguous()


def _encode_rows(rows: _Rows, exponents: torch.Tensor, fmt: WeightFormat) -> tuple[torch.Tensor, torch.Tensor]:
    tables = level_lookup(fmt.layout, fmt.bits, rows.w.device)[exponents[rows.block].long()]
    found = search_groups(rows.w, rows.h, rows.base, tables, fmt)
    codes = found.codes.view(-1, fmt.groups * fmt.group_size)[:, : fmt.cols]
    return pack(codes, fmt.bits), pack(found.words, fmt.word_bits)


def _decode_rows(weight: QuantizedWeight, start: int, stop: int) -> torch.Tensor:
    fmt, tensors = weight.format, weight.tensors
    blocks = torch.arange(start, stop, device=tensors["codes"].device) // fmt.block_rows
    codes = _slice(tensors["codes"], fmt.bits, start * fmt.cols, stop * fmt.cols).view(-1, fmt.cols)
    words = _slice(tensors["scales"], fmt.word_bits, start * fmt.groups, stop * fmt.groups).view(-1, fmt.groups)
    scale, choice = decode_scales(words, tensors["bases"][blocks], fmt)
    exponents = tensors["exponents"][blocks].long().gather(1, choice)
    spread = torch.arange(fmt.cols, device=codes.device) // fmt.group_size
    table = level_lookup(fmt.layout, fmt.bits, codes.device)
    return table[exponents[:, spread], codes] * scale[:, spread]


def _slice(packed: torch.Tensor, bits: int, start: int, stop: int) -> torch.Tensor:
    return unpack(packed[start * bits // 8 :], bits, stop - start)
