"""The `gguf` format: one file for llama.cpp and what is built on it, in its types of blocks and of super-blocks.

Blocks of 32 weights are whole numbers times a float16 scale, signed as ours are, so that the method finds them as it
finds any other codes. Super-blocks have a search of their own (`nupes_core.gguf.superblocksearch`). The container is
put together last, by `nupes_core.gguf.container`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nupes_core.config import ExponentConfig, LayerOverride, QuantizationConfig, WeightConfig
from nupes_core.errors import InvalidConfigError
from nupes_core.formats.base import Format, Pieces
from nupes_core.gguf.architectures import architecture_of
from nupes_core.gguf.blocktypes import BLOCK, SUPERBLOCK, TYPES, type_of
from nupes_core.gguf.tokenizer import read_tokenizer
from nupes_core.header import TensorInfo, TensorSpec
from nupes_core.planned import PlannedTensor
from nupes_core.recipe import Recipe
from nupes_core.selection import MatrixView, ModelFacts
from nupes_core.storage import WeightFormat

if TYPE_CHECKING:
    import torch

    from nupes_core.quantizer.weight import QuantizedWeight

NAME = "gguf"
FILE_NAME = "model.gguf"
ALIGNMENT = 32
"""Bytes that the tensors of a file begin at a multiple of."""

_COMPUTED = ("rotary_emb.inv_freq",)
"""Buffers that old checkpoints hold and nobody reads."""

SCALE_BITS = 10
"""Of the search; what is stored is a float16."""

SUPER_TYPES: Mapping[int, str] = {2: "Q2_K", 3: "Q3_K", 4: "Q4_K", 5: "Q5_K", 6: "Q6_K", 8: "Q8_0"}
"""Asked width -> type, for rows of whole super-blocks; of types of as many bits a weight those of least error."""

LEARNT_TYPES: Mapping[int, str] = {**SUPER_TYPES, 4: "IQ4_NL", 5: "Q5_0"}
"""The same where codes are learnt on data: these two are learnt on the very levels that they are stored with."""

BLOCK_TYPES: Mapping[int, str] = {4: "IQ4_NL", 5: "Q5_0", 8: "Q8_0"}
"""For other rows of whole blocks."""


def nearest(types: Mapping[int, str], bits: int) -> str:
    """Return the type whose codes are nearest to the asked bits; the larger of two that are as near."""
    return types[min(types, key=lambda width: (abs(width - bits), -width))]


def _settle(view: MatrixView, weight: WeightConfig, config: QuantizationConfig) -> WeightConfig:
    whole = LEARNT_TYPES if config.optimize == "data_driven" else SUPER_TYPES
    types = BLOCK_TYPES if view.cols % SUPERBLOCK else whole
    kind = TYPES[nearest(types, weight.bits)]
    return replace(weight, bits=kind.bits, group_size=kind.group_size, layout=kind.layout)


def _adapt(config: QuantizationConfig) -> QuantizationConfig:
    if config.activations is not None:
        raise InvalidConfigError(
            f"format {NAME} holds weights alone; this job quantizes activations too",
            hint="Leave activations out, or ask for the format nupes.",
        )
    weights = replace(
        config.weights,
        group_size=BLOCK,
        exponent=ExponentConfig("fixed", "layer", 1.0),
        layout="auto",
        scale_bits=SCALE_BITS,
    )
    layers = replace(config.layers, overrides=tuple(map(_override, config.layers.overrides)))
    training = replace(config.training, learn_exponent=False)
    return replace(config, weights=weights, layers=layers, training=training)


def _override(asked: LayerOverride) -> LayerOverride:
    return replace(asked, group_size=None)


def _refuse(info: TensorInfo, view: MatrixView, fmt: WeightFormat, facts: ModelFacts) -> str | None:
    if view.transposed or view.kernel or view.slices is not None:
        return f"{NAME} is written for plain matrices alone"
    if fmt.cols % BLOCK:
        return f"{NAME} needs whole blocks: {fmt.cols} columns are no multiple of {BLOCK}"
    return None


def _row_bytes(fmt: WeightFormat) -> int:
    return type_of(fmt.layout, fmt.bits).row_bytes(fmt.cols)


def _specs(tensor: PlannedTensor) -> tuple[TensorSpec, ...]:
    assert tensor.coding is not None, f"{tensor.name} is not quantized"
    fmt = tensor.coding.format
    return (TensorSpec(tensor.name, "U8", (fmt.rows, _row_bytes(fmt))),)


def _pieces(
    tensor: PlannedTensor, weight: QuantizedWeight, decoded: torch.Tensor, inputs: Mapping[str, torch.Tensor]
) -> Pieces:
    yield tensor.name, weight.ggml_blocks()


def _config(
    source: Mapping[str, Any], tensors: tuple[PlannedTensor, ...], settings: Mapping[str, Any]
) -> dict[str, Any]:
    return dict(source)


def is_written(tensor: PlannedTensor, *, tied: bool) -> bool:
    """Tell whether a tensor of the checkpoint is in the file: nothing that is computed, no head that is the table."""
    return not tensor.name.endswith(_COMPUTED) and not (tied and tensor.module == "lm_head")


def stored_bytes(tensor: PlannedTensor) -> int:
    """Return the bytes of a tensor in the file; vectors are float32 there."""
    if tensor.coding is not None:
        return tensor.coding.format.rows * _row_bytes(tensor.coding.format)
    return tensor.params * (4 if len(tensor.shape) == 1 or tensor.dtype == "F32" else 2)


def _own_bytes(tensors: Sequence[PlannedTensor], facts: ModelFacts) -> int:
    written = [tensor for tensor in tensors if is_written(tensor, tied=facts.tied)]
    return sum(-(-stored_bytes(tensor) // ALIGNMENT) * ALIGNMENT for tensor in written)


GGUF = Format(
    name=NAME,
    specs=_specs,
    pieces=_pieces,
    config=_config,
    snippet="from transformers import AutoModelForCausalLM  # with `pip install gguf`\n"
    'model = AutoModelForCausalLM.from_pretrained("{path}", gguf_file="model.gguf")\n'
    '# scaled rotary positions (Llama 3.1): add config=AutoConfig.from_pretrained("{path}")',
    recipe=Recipe(
        adapt=_adapt,
        refuse=_refuse,
        nbytes=lambda info, view, fmt: fmt.rows * _row_bytes(fmt),
        decode=lambda weight, dtype: weight.dequantize_ggml(),
        settle=_settle,
    ),
    check=lambda model_config, config: architecture_of(model_config),
    check_folder=read_tokenizer,
    own_bytes=_own_bytes,
    adds="vocabulary",
)
