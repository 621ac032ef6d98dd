"""Decoding of quantized weights in standard ONNX operators.

The codes of the power grid are kept as they are. A runtime finds the weights from constants alone, so one that folds
constants (onnxruntime does) decodes once, when it loads the file, and computes with floats from then on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial, reduce
from math import prod
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from nupes_core.quantizer.grid import level_lookup
from nupes_core.quantizer.scales import octave_scales
from nupes_core.quantizer.weight import QuantizedWeight
from nupes_core.storage import WeightFormat

PREFIX = "nupes"
"""Of the names of what weights share, and key of the metadata of the file."""

OPSET = 18
"""Of the operators; onnxruntime has them all since 1.15."""

FLOATS: Mapping[str, int] = {"F32": TensorProto.FLOAT, "F16": TensorProto.FLOAT16, "BF16": TensorProto.BFLOAT16}
"""safetensors name of a dtype -> that of ONNX."""

WORD_BITS: Mapping[int, int] = {2: 8, 3: 12, 4: 8, 5: 10, 6: 12, 7: 14, 8: 8}
"""Width of codes -> bits of the words that are looked up as a whole.

A runtime may keep each step of decoding until the last one is done. A word for some codes makes the steps before the
table small; bytes need no unpacking.
"""

_BYTE = 8


@dataclass(frozen=True)
class Form:
    """What weights have to share to be decoded by the same operators.

    Attributes:
        format: of the matrix.
        dtype: safetensors name; decoded values are rounded to it, and then float32.
        shape: of the weight.
        one_exponent: the whole matrix has one.
    """

    format: WeightFormat
    dtype: str
    shape: tuple[int, ...]
    one_exponent: bool

    @property
    def whole_groups(self) -> bool:
        """Whether every group of a row has `group_size` weights."""
        return self.format.cols % self.format.group_size == 0

    @property
    def by_words(self) -> bool:
        """Whether words hold codes of one group, so that one table maps words to levels."""
        return self.one_exponent and self.whole_groups and self.format.group_size % self.codes_of_word == 0

    @property
    def codes_of_word(self) -> int:
        """Codes in a word."""
        return WORD_BITS[self.format.bits] // self.format.bits


class Tables:
    """What all weights of a model look up: the levels of the exponents that occur, and scales by their octave."""

    def __init__(self, weights: Iterable[QuantizedWeight]) -> None:
        self._exponents: dict[tuple[str, int], list[int]] = {}
        low, high = [], []
        for weight in weights:
            fmt = weight.format
            known = self._exponents.setdefault((fmt.layout, fmt.bits), [])
            known += sorted(set(weight.tensors["exponents"].flatten().tolist()) - set(known))
            bases = weight.tensors["bases"].long()
            low.append(int(bases.min()) - ((1 << fmt.log_bits) - 1) * fmt.log_step)
            high.append(int(bases.max()))
        self.lowest, self._highest = min(low, default=0), max(high, default=0)

    def levels(self, fmt: WeightFormat) -> str:
        """Return the name of the table [exponents, 2^bits] of a layout and width."""
        return f"{PREFIX}.levels.{fmt.layout}.{fmt.bits}"

    def places(self, weight: QuantizedWeight) -> torch.Tensor:
        """Return where in the table the exponents of a weight are: uint8 [blocks, candidates]."""
        known = self._exponents[weight.format.layout, weight.format.bits]
        place = torch.zeros(256, dtype=torch.uint8)
        place[torch.tensor(known)] = torch.arange(len(known), dtype=torch.uint8)
        return place[weight.tensors["exponents"].long()]

    @property
    def octaves(self) -> str:
        """Name of the table of scales."""
        return f"{PREFIX}.scales"

    def initializers(self) -> list[onnx.TensorProto]:
        """Return the tables."""
        cpu = torch.device("cpu")
        tables = {
            f"{PREFIX}.levels.{layout}.{bits}": level_lookup(layout, bits, cpu)[torch.tensor(known)]
            for (layout, bits), known in sorted(self._exponents.items())
        }
        tables[self.octaves] = octave_scales(torch.arange(self.lowest, self._highest + 1))
        return [numpy_helper.from_array(table.numpy(), name) for name, table in tables.items()]


PARTS = ("codes", "scales", "bases", "exponents")
"""Of a weight `name`, stored as `name_part`."""


def stored(name: str, weight: QuantizedWeight, form: Form, tables: Tables) -> list[onnx.TensorProto]:
    """Return what is stored of a weight: codes, scales, bases and exponents, in the order decoding takes them."""
    fmt, parts = weight.format, weight.tensors
    places = tables.places(weight)
    width = WORD_BITS[fmt.bits] if form.by_words else fmt.bits
    bytes_of_groups = form.by_words and width == _BYTE
    codes = parts["codes"].view(fmt.rows, fmt.groups, -1) if bytes_of_groups else _whole_blocks(parts["codes"], width)
    scales = _whole_blocks(parts["scales"], fmt.word_bits)
    content = (codes, scales, parts["bases"], places.flatten()[:1] if form.one_exponent else places)
    return [numpy_helper.from_array(each.numpy(), f"{name}_{part}") for part, each in zip(PARTS, content, strict=True)]


def _whole_blocks(stream: torch.Tensor, bits: int) -> torch.Tensor:
    """Return a bit stream as uint8 [blocks, bits]: eight values are `bits` bytes."""
    return torch.nn.functional.pad(stream, (0, -len(stream) % bits)).view(-1, bits)


def one_exponent(weight: QuantizedWeight) -> bool:
    """Tell whether a matrix has one exponent throughout."""
    exponents = weight.tensors["exponents"]
    return bool((exponents == exponents.flatten()[0]).all())


@dataclass
class _Body:
    """Nodes, one value each."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)

    def __call__(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Append a node, return the name of its output."""
        output = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [output], **attributes))
        return output

    def constant(self, values: Any, dtype: Any = np.int64) -> str:
        """Append a constant."""
        return self("Constant", value=numpy_helper.from_array(np.asarray(values, dtype)))

    def integers(self, x: str) -> str:
        """Cast to int32."""
        return self("Cast", x, to=TensorProto.INT32)


class Decoder:
    """Builds the operators of a form; `lowest` is the octave that the table of scales begins with."""

    inputs = (*PARTS, "levels", "octaves")
    """Parts of a weight, and the tables of levels and of scales."""

    def __init__(self, form: Form, lowest: int) -> None:
        self._form, self._format, self._lowest = form, form.format, lowest
        self._do = _Body()

    def nodes(self, inputs: Sequence[str], output: str) -> list[onnx.NodeProto]:
        """Return nodes that make the weight `output`; all that is in between is named below it."""
        names = dict(zip(self.inputs, inputs, strict=True)) | {"": "", "weight": output}
        made = []
        for each in self._body:
            node = onnx.NodeProto()
            node.CopyFrom(each)
            node.input[:] = [names.get(name, f"{output}/{name}") for name in each.input]
            node.output[:] = [names.get(name, f"{output}/{name}") for name in each.output]
            node.name = node.output[0]
            made.append(node)
        return made

    @cached_property
    def _body(self) -> list[onnx.NodeProto]:
        do, form = self._do, self._form
        values = self._by_words() if form.by_words else self._by_codes()
        shaped = do("Reshape", values, do.constant(form.shape))
        if form.dtype != "F32":
            do("Cast", do("Cast", shaped, to=FLOATS[form.dtype]), to=TensorProto.FLOAT)
        do.nodes[-1].output[0] = "weight"
        return do.nodes

    def _by_words(self) -> str:
        """Return [rows, groups, words, codes of a word]: a table maps each word to the levels of its codes."""
        do, fmt, width = self._do, self._format, WORD_BITS[self._format.bits]
        scales, _ = self._scales()
        count = self._form.codes_of_word
        column = do("Unsqueeze", self._range(1 << width, np.int32), do.constant([1]))
        codes, _ = self._divided(column, 1 << fmt.bits * np.arange(count))
        _, codes = self._divided(codes, 1 << fmt.bits)
        row = do("Squeeze", do("Gather", "levels", do.integers("exponents"), axis=0), do.constant([0]))
        shape = (fmt.rows, fmt.groups, fmt.group_size // count)
        words = do.integers("codes") if width == _BYTE else self._unpacked("codes", width, shape)
        levels = do("Gather", do("Gather", row, codes, axis=0), words, axis=0)
        return do("Mul", levels, do("Unsqueeze", scales, do.constant([2, 3])))

    def _by_codes(self) -> str:
        """Return [rows, groups, group_size], or [rows, cols] where the last group of a row is shorter."""
        do, fmt = self._do, self._format
        scales, choice = self._scales()
        shape = (fmt.rows, fmt.groups, fmt.group_size) if self._form.whole_groups else (fmt.rows, fmt.cols)
        codes = self._unpacked("codes", fmt.bits, shape)
        place = do.integers("exponents")
        if not self._form.one_exponent:
            place = self._to_weights(do("GatherElements", self._to_rows(place), choice, axis=1))
        index = do("Add", codes, do("Mul", place, do.constant(1 << fmt.bits, np.int32)))
        levels = do("Gather", do("Reshape", "levels", do.constant([-1])), index, axis=0)
        return do("Mul", levels, self._to_weights(scales))

    def _scales(self) -> tuple[str, str]:
        """Return the scales float32 and the choices among exponents int32, both [rows, groups]."""
        do, fmt = self._do, self._format
        words = self._unpacked("scales", fmt.word_bits, (fmt.rows, fmt.groups))
        choice, index = self._divided(words, 1 << fmt.log_bits)
        below = do("Mul", index, do.constant(fmt.log_step, np.int32))
        bases = self._to_rows(do("Unsqueeze", do.integers("bases"), do.constant([1])))
        first = do("Sub", bases, do.constant(self._lowest + ((1 << fmt.log_bits) - 1) * fmt.log_step, np.int32))
        scales = do("Gather", "octaves", do("Add", first, below), axis=0)
        zero = do("Equal", index, do.constant(0, np.int32))
        scales = do("Where", zero, do.constant(0.0, np.float32), scales)
        if not fmt.has_sign:
            return scales, choice
        choice, negative = self._divided(choice, 2)
        return do("Where", do("Cast", negative, to=TensorProto.BOOL), do("Neg", scales), scales), choice

    def _to_rows(self, blocks: str) -> str:
        """Return [rows, …] of what is stored for each block of rows."""
        return self._do("Gather", blocks, self._shared(self._format.rows, self._format.block_rows), axis=0)

    def _to_weights(self, groups: str) -> str:
        """Return what belongs to groups [rows, groups] in a shape that broadcasts over their weights."""
        fmt, do = self._format, self._do
        if self._form.whole_groups:
            return do("Unsqueeze", groups, do.constant([2]))
        return do("Gather", groups, self._shared(fmt.cols, fmt.group_size), axis=1)

    def _shared(self, count: int, by: int) -> str:
        """Return int64 [count]: which of the things that `by` neighbours share belongs to each."""
        return self._do("Div", self._range(count, np.int64), self._do.constant(by))

    def _range(self, count: int, dtype: Any) -> str:
        return self._do("Range", *(self._do.constant(each, dtype) for each in (0, count, 1)))

    def _divided(self, x: str, by: Any) -> tuple[str, str]:
        """Return quotient and rest of int32 that are not negative."""
        divisor = self._do.constant(by, np.int32)
        return self._do("Div", x, divisor), self._do("Mod", x, divisor)

    def _unpacked(self, stream: str, bits: int, shape: tuple[int, ...]) -> str:
        """Return int32 of a shape from a stream [blocks, bits] of bytes: a value lies in up to three of them."""
        do = self._do
        start = np.arange(_BYTE) * bits
        first, shift = start // _BYTE, start % _BYTE
        # Where a value ends before its last part, the rest of the division drops what that holds.
        parts = [do("Gather", stream, do.constant(np.minimum(first + i, bits - 1)), axis=1) for i in _spanned(bits)]
        scaled = [do("Mul", do.integers(part), do.constant(256**i, np.int32)) for i, part in enumerate(parts) if i]
        values = reduce(partial(do, "Add"), scaled, do.integers(parts[0]))
        values = do("Div", values, do.constant(1 << shift, np.int32))
        values = do("Mod", values, do.constant(1 << bits, np.int32))
        if prod(shape) % _BYTE:
            values = do("Reshape", values, do.constant([-1]))
            values = do("Slice", values, do.constant([0]), do.constant([prod(shape)]))
        return do("Reshape", values, do.constant(shape))


def _spanned(bits: int) -> range:
    """Return the bytes that a value of a stream can lie in, counted from its first one."""
    return range(max((i * bits % _BYTE + bits - 1) // _BYTE for i in range(_BYTE)) + 1)
