"""Quantize one weight matrix to stored tensors, and back."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch

from nupes_core.config import WeightConfig
from nupes_core.errors import InvalidConfigError, NumericsError
from nupes_core.gguf.blocks import encode_blocks
from nupes_core.gguf.blocktypes import SUPERBLOCKS, SuperType
from nupes_core.gguf.superblockrows import decode_rows, encode_rows, row_spans
from nupes_core.quantizer.grid import exponent_code, exponent_value, integer_levels
from nupes_core.quantizer.scales import block_bases, decode_scales
from nupes_core.quantizer.search import Sample, engine, fit_candidates, fit_exponent, fit_row_exponents
from nupes_core.storage import WeightFormat, resolve_format, tensor_specs, weight_nbytes

T = TypeVar("T")

CHUNK_WEIGHTS = 1 << 18
"""Weights that a thread works on at once, so that temporaries stay small whatever the size of the matrix."""

SAMPLE_WEIGHTS, SAMPLE_ROWS = 1 << 13, 32
"""An exponent is fitted on at least so many weights and rows, where there are more.

The optimum is flat: on booklm eight times as many lower the error by 0.1 % (groups of 64) to 0.2 % (of 16), and take
three times as long.
"""


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
        if self.superblocks:
            return 1.0
        return exponent_value(0) + float(self.tensors["exponents"].double().mean()) * (
            exponent_value(1) - exponent_value(0)
        )

    @property
    def superblocks(self) -> SuperType | None:
        """The type of super-blocks that the matrix is stored in, if it is."""
        return SUPERBLOCKS.get(self.format.layout)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Return the [rows, cols] matrix, decoded chunk by chunk."""
        fmt, device = self.format, next(iter(self.tensors.values())).device
        out = torch.empty(fmt.rows, fmt.cols, dtype=dtype, device=device)

        def decode(rows: range) -> None:
            out[rows.start : rows.stop] = self._decode(rows)

        _each_chunk(fmt, decode, device)
        return out

    def dequantize_integers(self, dtype: torch.dtype, *, half_scales: bool = False) -> torch.Tensor:
        """Return [rows, cols] in `dtype` as engines decode it that know integers: code times `step_scales(…)`.

        Scales are stored in that dtype too, or as float16.
        """
        fmt, scales = self.format, self.step_scales(torch.float16 if half_scales else dtype).float()
        integers = integer_levels(fmt.layout, fmt.bits)[0].to(scales.device)
        out = torch.empty(fmt.rows, fmt.cols, dtype=dtype, device=scales.device)

        def decode(rows: range) -> None:
            steps = scales[rows.start : rows.stop].repeat_interleave(fmt.group_size, 1)[:, : fmt.cols]
            out[rows.start : rows.stop] = integers[self._codes(rows).int()] * steps

        _each_chunk(fmt, decode, scales.device)
        return out

    def step_scales(self, dtype: torch.dtype) -> torch.Tensor:
        """Return what a step from one code to the next is worth, signed, [rows, groups], rounded to `dtype`.

        For weights of exponent 1 on levels that are whole numbers but for a divisor (`integer_levels`): in layout
        `signed`, level k/2^(bits-1) times the scale of the group is k times a scale smaller by a power of two.
        """
        return (self.scales() / integer_levels(self.format.layout, self.format.bits)[1]).to(dtype)

    def scales(self, step: int = 1) -> torch.Tensor:
        """Return the signed scales of every `step`-th row from the first on, float32 [rows, groups]."""
        fmt = self.format
        words = _slice(self.tensors["scales"], fmt.word_bits, 0, fmt.rows * fmt.groups).view(fmt.rows, fmt.groups)
        bases = self.tensors["bases"][_blocks(range(0, fmt.rows, step), fmt, words.device)]
        return decode_scales(words[::step].long(), bases, fmt)[0]

    def spans(self, step: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what the levels of each group lie around and how far they reach (signed), of every `step`-th row.

        Two float32 [rows, groups].
        """
        if kind := self.superblocks:
            return row_spans(self.tensors["blocks"][::step], kind)
        scales = self.scales(step)
        return torch.zeros_like(scales), scales

    def packed_words(self) -> torch.Tensor:
        """Return the codes as int32 [rows, cols·bits/32], packed from the lowest bit on; rows must end on a word."""
        return self.tensors["codes"].view(torch.int32).view(self.format.rows, -1)

    def dequantize_ggml(self) -> torch.Tensor:
        """Return float32 [rows, cols] as llama.cpp decodes `ggml_blocks()`."""
        return self.dequantize() if self.superblocks else self.dequantize_integers(torch.float32, half_scales=True)

    def ggml_blocks(self) -> torch.Tensor:
        """Return the matrix in blocks of llama.cpp, uint8 [rows, bytes]; groups are those of a type of its."""
        if self.superblocks:
            return self.tensors["blocks"]
        return encode_blocks(self._codes(range(self.format.rows)), self.step_scales(torch.float16), self.format.bits)

    def shape(self) -> torch.Tensor:
        """Return int64 [2]: rows and columns."""
        return torch.tensor([self.format.rows, self.format.cols])

    def _codes(self, rows: range) -> torch.Tensor:
        fmt = self.format
        return _slice(self.tensors["codes"], fmt.bits, rows.start * fmt.cols, rows.stop * fmt.cols).view(-1, fmt.cols)

    def _decode(self, rows: range) -> torch.Tensor:
        fmt, tensors = self.format, self.tensors
        if kind := self.superblocks:
            return decode_rows(tensors["blocks"][rows.start : rows.stop], kind)
        blocks = _blocks(rows, fmt, tensors["codes"].device)
        codes = self._codes(rows)
        words = _slice(tensors["scales"], fmt.word_bits, rows.start * fmt.groups, rows.stop * fmt.groups)
        decoded: torch.Tensor = engine(codes.device).decode_rows(
            codes,
            words.view(-1, fmt.groups),
            tensors["bases"][blocks],
            tensors["exponents"][blocks],
            fmt,
        )
        return decoded


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
        InvalidConfigError: `w` is empty, or `importance` does not fit it.
    """
    fmt = resolve_format(w.shape[0], w.shape[1], config)
    h = _importance(importance, fmt, w.device)
    amax = _row_amax(w, fmt)
    if fmt.layout in SUPERBLOCKS:
        return _superblocks(fmt, w.device, lambda rows: (w[rows.start : rows.stop].float(), h, None))
    bases = block_bases(amax, fmt)
    exponents = _exponents(w, h, bases, fmt, config, shared_exponent)

    tensors = _empty(fmt, w.device) | {"bases": bases, "exponents": exponents}
    run = engine(w.device)

    def encode(rows: range) -> None:
        sample = _sample(w, h, bases, fmt, rows)
        found = run.search_rows(sample.w, h, sample.bases, exponents[_blocks(rows, fmt, w.device)], fmt)
        _put(tensors["codes"], run.pack(found.codes, fmt.bits), rows.start * fmt.cols * fmt.bits)
        _put(tensors["scales"], run.pack(found.words, fmt.word_bits), rows.start * fmt.groups * fmt.word_bits)

    _each_chunk(fmt, encode, w.device)
    return QuantizedWeight(fmt, tensors)


def to_superblocks(weight: QuantizedWeight, fmt: WeightFormat) -> QuantizedWeight:
    """Return a matrix on the uniform grid (layout `signed`, exponent 1) in super-blocks of as many bits and its groups.

    Codes stay those that were found or learnt, but where a rounded scale lets another one be nearer.
    """
    decoded, scales = weight.dequantize(), weight.scales()
    h = torch.ones(fmt.cols, device=decoded.device)

    def part(rows: range) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return decoded[rows.start : rows.stop], h, scales[rows.start : rows.stop]

    return _superblocks(fmt, decoded.device, part)


def _superblocks(
    fmt: WeightFormat,
    device: torch.device,
    part: Callable[[range], tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]],
) -> QuantizedWeight:
    """Encode rows chunk by chunk; `part` gives their weights, the importance of columns, and scales that are known."""
    kind = SUPERBLOCKS[fmt.layout]
    blocks = torch.empty(tensor_specs(fmt)["blocks"][0], dtype=torch.uint8, device=device)

    def encode(rows: range) -> None:
        w, h, scales = part(rows)
        blocks[rows.start : rows.stop] = encode_rows(w, h, kind, scales)

    _each_chunk(fmt, encode, device)
    return QuantizedWeight(fmt, {"blocks": blocks})


def _empty(fmt: WeightFormat, device: torch.device) -> dict[str, torch.Tensor]:
    """Return the bit streams, to be filled."""
    specs = tensor_specs(fmt)
    return {name: torch.empty(specs[name][0], dtype=torch.uint8, device=device) for name in ("codes", "scales")}


def _put(stream: torch.Tensor, part: torch.Tensor, first_bit: int) -> None:
    stream[first_bit // 8 : first_bit // 8 + len(part)] = part


def _chunks(fmt: WeightFormat) -> list[range]:
    """Return row ranges that start on whole bytes of both bit streams and on whole blocks."""
    unit = max(8, fmt.block_rows)
    step = max(CHUNK_WEIGHTS // fmt.cols // unit, 1) * unit
    return [range(start, min(start + step, fmt.rows)) for start in range(0, fmt.rows, step)]


def _each_chunk(fmt: WeightFormat, work: Callable[[range], T], device: torch.device) -> list[T]:
    """Return `work` of each chunk in order, on as many threads as torch uses; the kernels hold no lock."""
    chunks = _chunks(fmt)
    threads = min(torch.get_num_threads(), len(chunks)) if device.type == "cpu" else 1
    if threads == 1:
        return [work(rows) for rows in chunks]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, chunks))


def _row_amax(w: torch.Tensor, fmt: WeightFormat) -> torch.Tensor:
    amax = torch.cat([w[rows.start : rows.stop].abs().amax(1).float() for rows in _chunks(fmt)])
    if not bool(amax.isfinite().all()):
        row = int((~amax.isfinite()).nonzero()[0])
        raise NumericsError(
            f"row {row} of the weight holds NaN or an infinity",
            hint="The checkpoint is damaged or was saved after a diverged training; there is nothing to quantize.",
        )
    return amax


def _importance(importance: torch.Tensor | None, fmt: WeightFormat, device: torch.device) -> torch.Tensor:
    if importance is None:
        return torch.ones(fmt.cols, device=device)
    h = importance.to(device, torch.float32)
    usable = h.shape == (fmt.cols,) and bool(h.isfinite().all()) and bool((h >= 0).all()) and bool(h.any())
    if not usable:
        raise InvalidConfigError(
            f"importance of shape {tuple(h.shape)} does not fit {fmt.cols} columns, or holds unusable values",
            hint="Give one finite, non-negative number for each column, not all zero.",
        )
    return h / h.mean()


def _blocks(rows: range, fmt: WeightFormat, device: torch.device) -> torch.Tensor:
    return torch.arange(rows.start, rows.stop, rows.step, device=device) // fmt.block_rows


def _sample(w: torch.Tensor, h: torch.Tensor, bases: torch.Tensor, fmt: WeightFormat, rows: range) -> Sample:
    return Sample(w[rows.start : rows.stop : rows.step].float(), h, bases[_blocks(rows, fmt, w.device)], fmt)


def _exponents(
    w: torch.Tensor, h: torch.Tensor, bases: torch.Tensor, fmt: WeightFormat, config: WeightConfig, shared: float | None
) -> torch.Tensor:
    """Return the stored exponents, uint8 [blocks, candidates]."""
    a = config.exponent.value if config.exponent.mode == "fixed" else shared
    if a is None and config.exponent.scope == "row":

        def fit(rows: range) -> torch.Tensor:
            return fit_row_exponents(_sample(w, h, bases, fmt, rows))

        return torch.cat(_each_chunk(fmt, fit, w.device)).unsqueeze(1)
    codes = (exponent_code(a),) * fmt.candidates if a is not None else _fit(w, h, bases, fmt)
    return torch.tensor(codes, dtype=torch.uint8, device=w.device).expand(fmt.blocks, -1).contiguous()


def _fit(w: torch.Tensor, h: torch.Tensor, bases: torch.Tensor, fmt: WeightFormat) -> tuple[int, ...]:
    stride = max(fmt.rows // max(SAMPLE_WEIGHTS // fmt.cols, SAMPLE_ROWS), 1)
    sample = _sample(w, h, bases, fmt, range(0, fmt.rows, min(stride, fmt.rows)))
    return fit_candidates(sample) if fmt.candidates > 1 else (exponent_code(fit_exponent(sample)),)


def _slice(packed: torch.Tensor, bits: int, start: int, stop: int) -> torch.Tensor:
    values: torch.Tensor = engine(packed.device).unpack(packed[start * bits // 8 :], bits, stop - start)
    return values
