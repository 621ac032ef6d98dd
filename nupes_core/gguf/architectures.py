"""Architectures of llama.cpp that are written, and what of a model's configuration stands in their way; torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nupes_core.errors import UnsupportedArchitectureError
from nupes_core.gguf.rotary import BASE, local_base, rotary

WINDOW_PERIOD = 6
"""Of so many layers the last sees everything, the others a window."""

LOCAL_BASE = 10_000.0
"""Of the positions in layers with a window, which llama.cpp has built in."""


SIZES = (
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "vocab_size",
)
"""What the file must tell."""

WINDOW_SIZES = ("head_dim", "sliding_window")
"""The same of models that look through windows."""


@dataclass(frozen=True)
class Architecture:
    """One architecture, by the `model_type` of transformers.

    Attributes:
        name: of llama.cpp.
        reader: `model_type` that transformers' reader makes of a file.
        refused: keys of a configuration that must be absent or false.
        activation: of the MLP.
        interleaved: layers whose rows it wants interleaved, as its rotation turns neighbours: the key of their heads.
        norm_offset: what it wants added to the weights of norms.
        windowed: whether layers look through a window but for each sixth.
        base: of rotary positions where a configuration says nothing.
    """

    name: str
    reader: str
    refused: tuple[str, ...]
    activation: str = "silu"
    interleaved: Mapping[str, str] | None = None
    norm_offset: float = 0.0
    windowed: bool = False
    base: float = BASE


_LLAMA = Architecture(
    name="llama",
    reader="llama",
    refused=("attention_bias", "mlp_bias", "sliding_window"),
    interleaved={"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"},
)
_QWEN = ("attention_bias", "mlp_bias", "use_sliding_window")

ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": Architecture("qwen2", "qwen2", _QWEN),
    "qwen3": Architecture("qwen3", "qwen3", _QWEN),
    "gemma3_text": Architecture(
        name="gemma3",
        reader="gemma3_text",
        refused=("attention_bias", "attn_logit_softcapping", "final_logit_softcapping", "use_bidirectional_attention"),
        activation="gelu_pytorch_tanh",
        norm_offset=1.0,
        windowed=True,
        base=1_000_000.0,
    ),
}
"""`model_type` of transformers -> how it is written."""


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """Return how the model of a `config.json` is written.

    Raises:
        UnsupportedArchitectureError: it is not, or not with what its configuration says.
    """
    kind = str(config.get("model_type"))
    found = ARCHITECTURES.get(kind)
    if found is None:
        raise _refused(f"architectures but {', '.join(ARCHITECTURES)}; this model is {kind!r}")
    for key in (*SIZES, *(WINDOW_SIZES if found.windowed else ())):
        if type(config.get(key)) is not int or not 0 < config[key] < 1 << 31:
            raise _refused(f"a {kind} whose {key} is {config.get(key)!r}")
    for key in found.refused:
        if config.get(key):
            raise _refused(f"a {kind} with {key}")
    activation = config.get("hidden_activation") or config.get("hidden_act") or found.activation
    if activation != found.activation:
        raise _refused(f"a {kind} with the activation {activation!r}")
    rotary(config, found.base)
    if found.windowed:
        _check_windows(config, kind)
    return found


def head_dim(config: Mapping[str, Any]) -> int:
    """Return the features of an attention head."""
    return int(config.get("head_dim") or int(config["hidden_size"]) // int(config["num_attention_heads"]))


def _check_windows(config: Mapping[str, Any], kind: str) -> None:
    if local_base(config) != LOCAL_BASE:
        raise _refused(f"a {kind} whose windows have other positions than to the base {LOCAL_BASE:.0f}")
    if not _each_sixth(config):
        raise _refused(f"a {kind} where another than each sixth layer sees everything")
    if config.get("query_pre_attn_scalar") != config.get("head_dim"):
        raise _refused(f"a {kind} whose query_pre_attn_scalar is not its head_dim")


def _each_sixth(config: Mapping[str, Any]) -> bool:
    types = config.get("layer_types")
    if isinstance(types, list):
        return all((kind == "full_attention") == (layer % WINDOW_PERIOD == 0) for layer, kind in enumerate(types, 1))
    return bool(config.get("sliding_window_pattern", WINDOW_PERIOD) == WINDOW_PERIOD)


def _refused(what: str) -> UnsupportedArchitectureError:
    return UnsupportedArchitectureError(
        f"format gguf is not written for {what}", hint="Ask for the format nupes, dense or compressed-tensors."
    )
