"""Which checkpoint tensors are weight matrices that the job quantizes, and why the others are not. Torch-free.

Works on names, shapes and `config.json` alone, so that any architecture can be quantized without its model class.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from nupes_core.config import LayerSelection, QuantizationConfig, WeightConfig
from nupes_core.header import TensorInfo
from nupes_core.patterns import matches

FLOAT_DTYPES = ("BF16", "F16", "F32")
"""Dtypes that are quantized; integers, fp8 and float64 are passed through."""

CONV1D_MODEL_TYPES = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp", "clvp_decoder"})
"""Models whose linear layers are GPT-2's `Conv1D`, stored [in, out]."""

TRANSPOSED_EXPERTS_MODEL_TYPES = frozenset(
    {"gpt_oss", "llama4", "llama4_text", "aria", "aria_text", "openai_privacy_filter", "qwen3_vl_moe"}
)
"""Models that store fused experts [experts, in, out]; decides only where the shape does not."""

_CONV1D_NAMES = frozenset({"c_attn", "c_proj", "c_fc", "q_attn"})
_EXPERTS = re.compile(r"expert|moe", re.IGNORECASE)
_INPUT_SIDE = re.compile(r"(gate_up_proj|gate_proj|up_proj|input_linear|w1|w3|wi)(\.weight)?$")
_OUTPUT_SIDE = re.compile(r"(down_proj|output_linear|w2|wo)(\.weight)?$")
_EMBEDDING = re.compile(r"(^|_)emb|^(wte|wpe|shared|relative_attention_bias)$", re.IGNORECASE)
_NUMBERED_EXPERT = re.compile(r"experts?\.\d+\.")
_NUMBER = re.compile(r"\.\d+\.")
_ROUTER = re.compile(r"(^|\.)(gate|router|wg|shared_expert_gate)(\.layer)?\.weight$")
_HEAD = re.compile(r"head|out|decoder|classifier|score|predictions", re.IGNORECASE)


@dataclass(frozen=True)
class ModelFacts:
    """What `config.json` says about shapes; nested configurations (`text_config`, …) count too.

    Attributes:
        model_types: of the model and its parts.
        hidden_sizes, table_sizes, expert_counts: sizes of the residual stream, of embedding tables, of expert sets.
        tied: input embedding and output head share one table.
        image_channels: channels of the images that the model sees; 3 where the configuration does not say.
    """

    model_types: frozenset[str] = frozenset()
    hidden_sizes: frozenset[int] = frozenset()
    table_sizes: frozenset[int] = frozenset()
    expert_counts: frozenset[int] = frozenset()
    tied: bool = False
    image_channels: frozenset[int] = frozenset({3})

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ModelFacts:
        """Collect the facts; anything that is not a sensible number is passed over."""
        parts = list(_nested(config))

        def sizes(*keys: str) -> frozenset[int]:
            values = (part.get(key) for part in parts for key in keys)
            return frozenset(v for v in values if type(v) is int and v > 1)

        channels = sizes("num_channels", "in_channels", "in_chans")

        return cls(
            model_types=frozenset(str(part["model_type"]) for part in parts if "model_type" in part),
            hidden_sizes=sizes("hidden_size", "n_embd", "d_model", "dim"),
            table_sizes=sizes("vocab_size", "max_position_embeddings", "n_positions", "type_vocab_size"),
            expert_counts=sizes("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts", "n_experts"),
            tied=config.get("tie_word_embeddings") is True,
            image_channels=channels or cls.image_channels,
        )


@dataclass(frozen=True)
class MatrixView:
    """How a stored tensor is read as matrices [rows = outputs, cols = inputs].

    Attributes:
        rows, cols: of one matrix.
        slices: number of fused matrices; None for a plain 2-D weight.
        transposed: stored as [cols, rows].
        kernel: height and width of the kernels of a convolution, stored [rows, channels, height, width]; else empty.
    """

    rows: int
    cols: int
    slices: int | None = None
    transposed: bool = False
    kernel: tuple[int, ...] = ()

    @property
    def count(self) -> int:
        """Number of matrices."""
        return 1 if self.slices is None else self.slices


def module_name(tensor: str) -> str:
    """Return the module that owns a checkpoint tensor, or the parameter's own name where it is no `.weight`."""
    return tensor.removesuffix(".weight")


def layer_config(module: str, config: QuantizationConfig) -> WeightConfig | str:
    """Return how a module is to be quantized by the user's selection, or the reason why it is left alone."""
    for pattern in config.layers.exclude:
        if module == pattern or matches(pattern, module):
            return f"excluded by layers.exclude '{pattern}'"
    hits = [override for override in config.layers.overrides if matches(override.match, module)]
    if not hits:
        return config.weights
    override = hits[-1]
    if override.skip:
        return f"skipped by layers.overrides '{override.match}'"
    bits = config.weights.bits if override.bits is None else override.bits
    group_size = config.weights.group_size if override.group_size is None else override.group_size
    return replace(config.weights, bits=bits, group_size=group_size)


def matrix_view(info: TensorInfo, facts: ModelFacts, selection: LayerSelection) -> MatrixView | str:
    """Return how a tensor is read as weight matrices, or the reason why it is not quantized."""
    for rule in _RULES:
        reason = rule(info, facts, selection)
        if reason is not None:
            return reason
    if len(info.shape) == 4:
        return MatrixView(info.shape[0], prod(info.shape[1:]), kernel=info.shape[2:])
    if len(info.shape) == 3:
        experts, first, second = info.shape
        transposed = _experts_transposed(info, facts)
        rows, cols = (second, first) if transposed else (first, second)
        return MatrixView(rows, cols, experts, transposed)
    first, second = info.shape
    if _is_conv1d(info, facts):
        return MatrixView(second, first, None, True)
    return MatrixView(first, second)


def has_coded_input(info: TensorInfo, facts: ModelFacts) -> bool:
    """Tell whether a quantized tensor is a layer whose input can be coded: neither embedding table nor expert.

    Experts are fused and decoded while a model is loaded.
    """
    is_expert = len(info.shape) == 3 or bool(_NUMBERED_EXPERT.search(info.name))
    return not is_expert and _embedding(info, facts, LayerSelection()) is None


def _not_float(info: TensorInfo, facts: ModelFacts, selection: LayerSelection) -> str | None:
    return None if info.dtype in FLOAT_DTYPES else f"dtype {info.dtype}: only {', '.join(FLOAT_DTYPES)} are quantized"


def _not_a_matrix(info: TensorInfo, facts: ModelFacts, selection: LayerSelection) -> str | None:
    dimensions = len(info.shape)
    if info.params == 0:
        return "empty"
    if dimensions < 2:
        return "norm, bias or scalar: too small to matter"
    if dimensions > 4:
        return f"{dimensions}-D: convolutions of two dimensions are quantized"
    if dimensions == 3 and not _is_experts(info, facts):
        return "3-D, and not fused experts by its name and shape"
    return None


def _not_a_weight(info: TensorInfo, facts: ModelFacts, selection: LayerSelection) -> str | None:
    bare = len(info.shape) in {2, 4} and not info.name.endswith(".weight")
    return "a bare parameter, not the weight of a layer" if bare else None


def _convolution(info: TensorInfo, facts: ModelFacts, selection: LayerSelection) -> str | None:
    if len(info.shape) != 4:
        return None
    channels = info.shape[1]
    if channels == 1:
        return "convolution of single channels: small and sensitive"
    return "convolution of the image: small and sensitive" if channels in facts.image_channels else None


def _embedding(info: TensorInfo, facts: ModelFacts, selection: LayerSelection) -> str | None:
    if selection.embeddings or len(info.shape) != 2:
        return None
    own_name = _own_name(info.name)
    # in a numbered block a layer as wide as the longest position (8192 in SmolLM2) is no table
    table = info.shape[0] in facts.table_sizes and info.shape[1] in facts.hidden_sizes and not _NUMBER.search(info.name)
    unlikely_head = info.shape[0] not in facts.hidden_sizes and not _HEAD.search(own_name)
    if _EMBEDDING.search(own_name) or (table and unlikely_head):
        return "embedding table (layers.embeddings quantizes it)"
    return None


def _tied_head(info: TensorInfo, facts: ModelFacts, selection: LayerSelection) -> str | None:
    tied = facts.tied and _own_name(info.name) in {"lm_head", "embed_out"}
    return "tied to the input embedding" if tied else None


def _router(info: TensorInfo, facts: ModelFacts, selection: LayerSelection) -> str | None:
    named = bool(facts.expert_counts) and bool(_ROUTER.search(info.name))
    is_router = named and len(info.shape) == 2 and info.shape[0] in facts.expert_counts | {1}
    return "router of a mixture of experts: tiny and sensitive" if is_router else None


_RULES: tuple[Callable[[TensorInfo, ModelFacts, LayerSelection], str | None], ...] = (
    _not_float,
    _not_a_matrix,
    _not_a_weight,
    _convolution,
    _tied_head,
    _embedding,
    _router,
)


def _nested(config: Mapping[str, Any], depth: int = 0) -> Iterator[Mapping[str, Any]]:
    yield config
    for value in config.values():
        if isinstance(value, Mapping) and depth < 4:
            yield from _nested(value, depth + 1)


def _own_name(tensor: str) -> str:
    return module_name(tensor).rpartition(".")[2]


def _is_experts(info: TensorInfo, facts: ModelFacts) -> bool:
    known_side = _INPUT_SIDE.search(info.name) or _OUTPUT_SIDE.search(info.name)
    counted = info.shape[0] in facts.expert_counts or not facts.expert_counts
    return bool(_EXPERTS.search(info.name) and known_side and counted)


def _experts_transposed(info: TensorInfo, facts: ModelFacts) -> bool:
    """Tell [experts, in, out] from [experts, out, in] by where the hidden size is, else by the model's type."""
    _, first, second = info.shape
    hidden_first, hidden_second = first in facts.hidden_sizes, second in facts.hidden_sizes
    if hidden_first == hidden_second:
        return bool(facts.model_types & TRANSPOSED_EXPERTS_MODEL_TYPES)
    return hidden_first if _INPUT_SIDE.search(info.name) else hidden_second


def _is_conv1d(info: TensorInfo, facts: ModelFacts) -> bool:
    return bool(facts.model_types & CONV1D_MODEL_TYPES) and _own_name(info.name) in _CONV1D_NAMES
