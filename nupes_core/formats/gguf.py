"""The `gguf` format: one file for llama.cpp and what is built on it, in its block types of 32 weights.

Blocks are integers of the uniform grid times a float16 scale, signed as ours are, so that the method finds them as it
finds any other codes. The container is put together last, by `nupes_core.ggufcontainer`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from nupes_core.config import ExponentConfig, LayerOverride, QuantizationConfig
from nupes_core.errors import InvalidConfigError, UnsupportedArchitectureError
from nupes_core.formats.base import Format, Pieces
from nupes_core.header import TensorInfo, TensorSpec
from nupes_core.planned import PlannedTensor
from nupes_core.recipe import Recipe
from nupes_core.selection import MatrixView, ModelFacts
from nupes_core.storage import WeightFormat

if TYPE_CHECKING:
    import torch

    from nupes_core.weight import QuantizedWeight

NAME = "gguf"
FILE_NAME = "model.gguf"
BLOCK = 32
SCALE_BITS = 10
"""Of the search; what is stored is a float16."""


@dataclass(frozen=True)
class BlockType:
    """A type of llama.cpp: its name, and bytes of a block of 32 weights with their scale."""

    name: str
    nbytes: int


TYPES: Mapping[int, BlockType] = {4: BlockType("Q4_0", 18), 5: BlockType("Q5_0", 22), 8: BlockType("Q8_0", 34)}
"""By the width of their codes."""

ARCHITECTURES: Mapping[str, str] = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2"}
"""`model_type` of transformers -> architecture of llama.cpp."""

INTERLEAVED: Mapping[str, Mapping[str, str]] = {
    "llama": {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
}
"""Architecture -> layers whose rows it wants interleaved, as its rotation turns neighbours: the key of their heads."""


def _nearest(bits: int) -> int:
    """Return the width of the type nearest to the asked one; the larger of two that are as near."""
    return min(TYPES, key=lambda width: (abs(width - bits), -width))


def _adapt(config: QuantizationConfig) -> QuantizationConfig:
    if config.activations is not None:
        raise InvalidConfigError(
            f"format {NAME} holds weights alone; this job quantizes activations too",
            hint="Leave activations out, or ask for the format nupes.",
        )
    weights = replace(
        config.weights,
        bits=_nearest(config.weights.bits),
        group_size=BLOCK,
        exponent=ExponentConfig("fixed", "layer", 1.0),
        layout="signed",
        scale_bits=SCALE_BITS,
    )
    layers = replace(config.layers, overrides=tuple(map(_override, config.layers.overrides)))
    training = replace(config.training, learn_exponent=False)
    return replace(config, weights=weights, layers=layers, training=training)


def _override(asked: LayerOverride) -> LayerOverride:
    return replace(asked, bits=None if asked.bits is None else _nearest(asked.bits), group_size=None)


def _check(model_config: Mapping[str, Any], config: QuantizationConfig) -> None:
    kind = model_config.get("model_type")
    if kind not in ARCHITECTURES:
        raise UnsupportedArchitectureError(
            f"format {NAME} is written for the architectures {', '.join(ARCHITECTURES)}; this model is {kind!r}",
            hint="Ask for the format nupes, dense or compressed-tensors.",
        )
    rope = model_config.get("rope_parameters") or model_config.get("rope_scaling") or {}
    kinds_of_rope = {rope.get(key, "default") for key in ("rope_type", "type")}
    window = "use_sliding_window" if kind == "qwen2" else "sliding_window"
    found = [key for key in ("attention_bias", "mlp_bias", window) if model_config.get(key)]
    if kinds_of_rope != {"default"} or found:
        raise UnsupportedArchitectureError(
            f"format {NAME} is not written for a {kind} with {found[0] if found else 'scaled rotary positions'}",
            hint="Ask for the format nupes, dense or compressed-tensors.",
        )


def _refuse(info: TensorInfo, view: MatrixView, fmt: WeightFormat, facts: ModelFacts) -> str | None:
    if view.transposed or view.kernel or view.slices is not None:
        return f"{NAME} is written for plain matrices alone"
    if fmt.cols % BLOCK:
        return f"{NAME} needs whole blocks: {fmt.cols} columns are no multiple of {BLOCK}"
    return None


def _row_bytes(fmt: WeightFormat) -> int:
    return fmt.cols // BLOCK * TYPES[fmt.bits].nbytes


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


GGUF = Format(
    name=NAME,
    specs=_specs,
    pieces=_pieces,
    config=_config,
    snippet="from transformers import AutoModelForCausalLM  # with `pip install gguf`\n"
    'model = AutoModelForCausalLM.from_pretrained("{path}", gguf_file="model.gguf")',
    recipe=Recipe(
        adapt=_adapt,
        refuse=_refuse,
        nbytes=lambda info, view, fmt: fmt.rows * _row_bytes(fmt),
        decode=lambda weight, dtype: weight.dequantize_ggml(),
    ),
    check=_check,
)
