"""A weight matrix while its codes, scales and exponents are learnt (NUPES, method §3).

Codes are free over the entire quantized space: a latent real code per weight is rounded, and its gradient is passed
straight through. The slope of the decoding map is the secant across the cell of the code, because the tangent of the
power function is 0 or infinite at code 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from nupes_core.quantizer.grid import EXPONENT_STEP, MIN_EXPONENT, exponent_code, level_lookup
from nupes_core.quantizer.scales import BASE_UNITS, index_scales, split_words
from nupes_core.quantizer.search import engine
from nupes_core.quantizer.weight import QuantizedWeight
from nupes_core.storage import WeightFormat, tensor_specs

EXPONENT_BOX = (exponent_code(0.3), exponent_code(1.5))


@dataclass(frozen=True)
class Coded:
    """A quantized matrix with its streams unpacked.

    Attributes:
        format: of the matrix.
        codes: uint8 [rows, cols].
        index: int64 [rows, groups], log2 scale; 0 is the scale 0.
        sign: float32 [rows, groups], ±1.
        choice: int64 [rows, groups], exponent choice.
        bases: int16 [blocks].
        exponents: uint8 [blocks, candidates].
    """

    format: WeightFormat
    codes: torch.Tensor
    index: torch.Tensor
    sign: torch.Tensor
    choice: torch.Tensor
    bases: torch.Tensor
    exponents: torch.Tensor

    @classmethod
    def unpack(cls, weight: QuantizedWeight) -> Coded:
        """Unpack a stored weight."""
        fmt, tensors = weight.format, weight.tensors
        run = engine(tensors["codes"].device)
        codes = run.unpack(tensors["codes"], fmt.bits, fmt.rows * fmt.cols).to(torch.uint8).view(fmt.rows, fmt.cols)
        words = run.unpack(tensors["scales"], fmt.word_bits, fmt.rows * fmt.groups).long().view(fmt.rows, fmt.groups)
        return cls(fmt, codes, *split_words(words, fmt), tensors["bases"], tensors["exponents"])

    def pack(self) -> QuantizedWeight:
        """Return the stored form."""
        fmt = self.format
        run = engine(self.codes.device)
        words = self.index | (self.choice << (fmt.word_bits - fmt.choice_bits))
        if fmt.has_sign:
            words |= (self.sign < 0).long() << fmt.log_bits
        narrow = torch.uint8 if fmt.word_bits <= 8 else torch.uint16
        tensors = {
            "codes": run.pack(self.codes, fmt.bits),
            "scales": run.pack(words.to(narrow), fmt.word_bits),
            "bases": self.bases,
            "exponents": self.exponents,
        }
        return QuantizedWeight(fmt, {name: tensors[name] for name in tensor_specs(fmt)})

    def scales(self) -> torch.Tensor:
        """Return float32 [rows, groups], signed."""
        return self.sign * index_scales(self.index, self.row_bases(), self.format)

    def row_bases(self) -> torch.Tensor:
        """Return int16 [rows], the base of each row's block."""
        return self.bases.repeat_interleave(self.format.block_rows)[: self.format.rows]


class LatentWeight(nn.Module):
    """Trainable form of a quantized matrix; calling it gives the decoded matrix [rows, cols].

    Attributes:
        z: float32 [rows, cols], latent codes.
        log_scale: float32 [rows, groups], latent log2 indices of the scales.
        exponent: float32 [sets, candidates], latent stored exponents; a set serves all rows, or one row.
    """

    def __init__(self, coded: Coded, target: torch.Tensor) -> None:
        """Start at the fractional codes of `target` [rows, cols], which rounds to the codes given."""
        super().__init__()
        fmt = coded.format
        self.coded, self.format = coded, fmt
        by_row = fmt.block_rows == 1 and bool((coded.exponents != coded.exponents[:1]).any())
        sets = coded.exponents if by_row else coded.exponents[:1]
        self.exponent = nn.Parameter(sets.float())
        self.log_scale = nn.Parameter(coded.index.float())
        self.tables = level_lookup(fmt.layout, fmt.bits, coded.codes.device)
        table = torch.arange(len(sets), device=coded.codes.device).unsqueeze(1) if by_row else 0
        self._table = self._by_weight(table * fmt.candidates + coded.choice)
        self._live = (coded.index > 0).float()
        self.z = nn.Parameter(self._fractional(target))

    def forward(self) -> torch.Tensor:
        """Decode."""
        fmt = self.format
        codes = self.exponent.detach().round().clamp(*EXPONENT_BOX).long().flatten()
        table, tilt = self.tables[codes], _tilt(self.tables[codes], codes)
        index = self.log_scale.detach().round().clamp(1, (1 << fmt.log_bits) - 1).long()
        scale = index_scales(index, self.coded.row_bases(), fmt) * self.coded.sign * self._live
        found: torch.Tensor = _Decode.apply(self.z, self.log_scale, self.exponent, self._table, table, tilt, scale, fmt)  # type: ignore[no-untyped-call]
        return found

    def snapped(self) -> Coded:
        """Return what would be stored now."""
        fmt, coded = self.format, self.coded
        index = self.log_scale.detach().round().clamp(1, (1 << fmt.log_bits) - 1).long() * self._live.long()
        exponents = self.exponent.detach().round().clamp(*EXPONENT_BOX).to(torch.uint8)
        if len(exponents) != fmt.blocks:
            exponents = exponents.expand(fmt.blocks, -1).contiguous()
        codes = self.z.detach().round().clamp(0, (1 << fmt.bits) - 1).to(torch.uint8)
        return Coded(fmt, codes, index, coded.sign, coded.choice, coded.bases, exponents)

    def _fractional(self, target: torch.Tensor) -> torch.Tensor:
        """Return codes with a fraction: where between its neighbours each weight lies, never nearer to another code."""
        fmt, coded = self.format, self.coded
        scale = coded.scales().repeat_interleave(fmt.group_size, 1)[:, : fmt.cols]
        x = torch.where(scale != 0, target / scale, 0.0)
        flat = self.tables[self.exponent.detach().long().flatten()].flatten()
        size = 1 << fmt.bits
        here = self._table * size + coded.codes.long()
        up = flat[here + (coded.codes < size - 1).long()] - flat[here]
        down = flat[here] - flat[here - (coded.codes > 0).long()]
        offset = x - flat[here]
        width = torch.where(offset > 0, up, down)
        return coded.codes + torch.where(width > 0, offset / width, 0.0).clamp(-0.49, 0.49)

    def _by_weight(self, by_group: torch.Tensor) -> torch.Tensor:
        """Spread [rows, groups] over the weights; a single 0 where all weights share one table."""
        if not bool(by_group.any()):
            return torch.zeros((), dtype=torch.int32, device=by_group.device)
        return by_group.int().repeat_interleave(self.format.group_size, 1)[:, : self.format.cols].contiguous()


class _Decode(torch.autograd.Function):
    """ŵ = scale · level[round(z)], with straight-through gradients for codes, log2 scales and exponents."""

    @staticmethod
    def forward(
        ctx: Any,
        z: torch.Tensor,
        log_scale: torch.Tensor,
        exponent: torch.Tensor,
        which: torch.Tensor,
        table: torch.Tensor,
        tilt: torch.Tensor,
        scale: torch.Tensor,
        fmt: WeightFormat,
    ) -> torch.Tensor:
        size = 1 << fmt.bits
        flat = (which * size + z.round().clamp(0, size - 1).int()).view(-1)
        level = table.view(-1).index_select(0, flat).view_as(z)
        ctx.save_for_backward(flat, table, tilt, scale)
        ctx.format, ctx.exponent_shape = fmt, exponent.shape
        return _grouped_product(level, scale, fmt)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
        grad = grads[0]
        flat, table, tilt, scale = ctx.saved_tensors
        fmt: WeightFormat = ctx.format
        need_z, need_scale, need_exponent = ctx.needs_input_grad[:3]
        scaled = _grouped_product(grad, scale, fmt)
        grad_z = grad_scale = grad_exponent = None
        if need_z:
            grad_z = scaled * _slopes(table).view(-1).index_select(0, flat).view_as(grad)
        if need_scale:
            per_unit = math.log(2) * fmt.log_step / BASE_UNITS
            level = table.view(-1).index_select(0, flat).view_as(grad)
            grad_scale = per_unit * _group_sums(scaled * level, fmt)
        if need_exponent:
            moved = (scaled.view(-1) * tilt.view(-1).index_select(0, flat)).double()
            sums = torch.zeros(table.shape[0], dtype=torch.float64, device=grad.device)
            grad_exponent = sums.index_add_(0, flat >> fmt.bits, moved).float().view(ctx.exponent_shape)
        return grad_z, grad_scale, grad_exponent, None, None, None, None, None


def _slopes(table: torch.Tensor) -> torch.Tensor:
    """Return [tables, levels], the secant of each level's cell: half the way from the level below to the one above."""
    padded = torch.cat([2 * table[:, :1] - table[:, 1:2], table, 2 * table[:, -1:] - table[:, -2:-1]], 1)
    return (padded[:, 2:] - padded[:, :-2]) / 2


def _tilt(table: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Return the derivative of each level by the stored exponent: −level·ln v/a² = −level·ln|level|/a, 0 at level 0."""
    a = (MIN_EXPONENT + codes.double() * EXPONENT_STEP).float().unsqueeze(1)
    size = table.abs()
    return torch.where(size > 0, -table * size.clamp_min(1e-30).log() / a, 0.0) * EXPONENT_STEP


def _grouped_product(x: torch.Tensor, scale: torch.Tensor, fmt: WeightFormat) -> torch.Tensor:
    """Return x [rows, cols] times the scale [rows, groups] of its group."""
    if fmt.cols % fmt.group_size == 0:
        return (x.view(fmt.rows, fmt.groups, fmt.group_size) * scale.unsqueeze(2)).view(fmt.rows, fmt.cols)
    return x * scale.repeat_interleave(fmt.group_size, 1)[:, : fmt.cols]


def _group_sums(x: torch.Tensor, fmt: WeightFormat) -> torch.Tensor:
    padded = torch.nn.functional.pad(x, (0, fmt.groups * fmt.group_size - fmt.cols))
    return padded.view(fmt.rows, fmt.groups, fmt.group_size).sum(2)
