"""The `compressed-tensors` format, pack-quantized integers: what vLLM, SGLang and transformers load.

Codes of the uniform grid (exponent 1) in 4 or 8 bits; found, compensated and learnt as those of any other grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any

from nupes_core.config import PER_CHANNEL, ExponentConfig, QuantizationConfig
from nupes_core.errors import InvalidConfigError
from nupes_core.formats.base import Format, Pieces
from nupes_core.header import DTYPE_BYTES, TensorInfo, TensorSpec
from nupes_core.planned import Coding, PlannedTensor
from nupes_core.recipe import Recipe
from nupes_core.selection import MatrixView, ModelFacts, has_coded_input
from nupes_core.storage import WeightFormat

if TYPE_CHECKING:
    import torch

    from nupes_core.quantizer.weight import QuantizedWeight

NAME = "compressed-tensors"
BITS = (4, 8)
WORD_BITS = 32
"""Codes are packed into words of so many bits, row by row."""

SCALE_BITS = 10
"""Of the search: 32 scales to an octave. None of them is stored; what is stored is a float."""


def _adapt(config: QuantizationConfig) -> QuantizationConfig:
    if config.activations is not None:
        raise InvalidConfigError(
            f"format {NAME} holds weights alone; this job quantizes activations too",
            hint="Leave activations out, or ask for the format nupes.",
        )
    wished = [config.weights.bits, *(each.bits for each in config.layers.overrides if each.bits is not None)]
    for bits in wished:
        if bits not in BITS:
            raise InvalidConfigError(
                f"format {NAME} holds weights of 4 or 8 bits; this job asks for {bits}",
                hint="Use 4 or 8 bits here, or the format nupes, which holds 2 to 8.",
            )
    weights = replace(
        config.weights, exponent=ExponentConfig("fixed", "layer", 1.0), layout="signed", scale_bits=SCALE_BITS
    )
    return replace(config, weights=weights, training=replace(config.training, learn_exponent=False))


def _refuse(info: TensorInfo, view: MatrixView, fmt: WeightFormat, facts: ModelFacts) -> str | None:
    if view.transposed or view.kernel or view.slices is not None or not has_coded_input(info, facts):
        return f"{NAME} holds linear layers alone: no embeddings, experts, Conv1D or convolutions"
    if fmt.cols % fmt.group_size:
        return f"{NAME} needs whole groups: {fmt.cols} columns are no multiple of {fmt.group_size}"
    if fmt.cols * fmt.bits % WORD_BITS:
        return f"{NAME} packs whole words: {fmt.cols} columns of {fmt.bits} bits are no multiple of {WORD_BITS} bits"
    return None


def _stored(dtype: str, fmt: WeightFormat) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return suffix -> (dtype, shape) of what a weight becomes."""
    return {
        "packed": ("I32", (fmt.rows, fmt.cols * fmt.bits // WORD_BITS)),
        "scale": (dtype, (fmt.rows, fmt.groups)),
        "shape": ("I64", (2,)),
    }


def _nbytes(info: TensorInfo, view: MatrixView, fmt: WeightFormat) -> int:
    return sum(DTYPE_BYTES[dtype] * prod(shape) for dtype, shape in _stored(info.dtype, fmt).values())


def _specs(tensor: PlannedTensor) -> tuple[TensorSpec, ...]:
    stored = _stored(tensor.dtype, _coding(tensor).format)
    return tuple(TensorSpec(f"{tensor.name}_{suffix}", dtype, shape) for suffix, (dtype, shape) in stored.items())


def _pieces(
    tensor: PlannedTensor, weight: QuantizedWeight, decoded: torch.Tensor, inputs: Mapping[str, torch.Tensor]
) -> Pieces:
    # Both sides pack codes from the lowest bit on, and count them from the most negative integer.
    yield f"{tensor.name}_packed", weight.packed_words()
    yield f"{tensor.name}_scale", weight.step_scales(decoded.dtype)
    yield f"{tensor.name}_shape", weight.shape()


def _config(
    source: Mapping[str, Any], tensors: tuple[PlannedTensor, ...], settings: Mapping[str, Any]
) -> dict[str, Any]:
    schemes: dict[tuple[int, int], list[str]] = {}
    for tensor in tensors:
        if tensor.coding is not None:
            fmt, wish = tensor.coding.format, tensor.coding.weight.group_size
            schemes.setdefault((fmt.bits, wish if wish == PER_CHANNEL else fmt.group_size), []).append(tensor.module)
    # One scheme is said of all linear layers, as users write it; of several each names its layers.
    groups = {
        f"group_{index}": {"targets": ["Linear"] if len(schemes) == 1 else names, "weights": _scheme(*scheme)}
        for index, (scheme, names) in enumerate(schemes.items())
    }
    quantization = {
        "quant_method": NAME,
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": _left_alone(tensors),
    }
    return {**source, "quantization_config": quantization}


def _scheme(bits: int, group_size: int) -> dict[str, Any]:
    per_channel = group_size == PER_CHANNEL
    strategy = {"strategy": "channel"} if per_channel else {"strategy": "group", "group_size": group_size}
    return {"num_bits": bits, "type": "int", "symmetric": True, "dynamic": False, **strategy}


def _left_alone(tensors: tuple[PlannedTensor, ...]) -> list[str]:
    """Return the modules that could be linear layers and are not quantized; a tied head is in no file."""
    matrices = [each for each in tensors if len(each.shape) == 2 and each.name != each.module]
    left = [each.module for each in matrices if each.coding is None]
    return left if any(each.module == "lm_head" for each in matrices) else [*left, "lm_head"]


def _coding(tensor: PlannedTensor) -> Coding:
    assert tensor.coding is not None, f"{tensor.name} is not quantized"
    return tensor.coding


COMPRESSED_TENSORS = Format(
    name=NAME,
    specs=_specs,
    pieces=_pieces,
    config=_config,
    snippet="from transformers import AutoModelForCausalLM  # with `pip install compressed-tensors`\n"
    'model = AutoModelForCausalLM.from_pretrained("{path}")',
    recipe=Recipe(_adapt, _refuse, _nbytes, decode=lambda weight, dtype: weight.dequantize_integers(dtype)),
)
