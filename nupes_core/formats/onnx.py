"""The `onnx` format: one file for onnxruntime, the graph of the model with the codes of the power grid in it.

Until the graph is put around them, by `nupes_core.onnx.container`, the weights are those of the native format.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nupes_core.config import QuantizationConfig
from nupes_core.errors import InvalidConfigError, UnsupportedArchitectureError
from nupes_core.formats.base import Format
from nupes_core.formats.native import NATIVE
from nupes_core.planned import PlannedTensor

NAME = "onnx"
FILE_NAME = "model.onnx"

MODEL_TYPES: tuple[str, ...] = (
    "albert",
    "bert",
    "beit",
    "camembert",
    "convnext",
    "convnextv2",
    "deberta-v2",
    "deit",
    "dinov2",
    "distilbert",
    "electra",
    "modernbert",
    "mpnet",
    "regnet",
    "resnet",
    "roberta",
    "vit",
    "xlm-roberta",
)
"""`model_type` of transformers' encoders and convolution nets whose graph computes what the model does, as tested."""

MOST_BYTES = 2_000_000_000
"""Of the file: a protocol buffer ends at 2 GiB."""

EXPORT_BYTES = 300_000_000
"""Code of torch's exporter and of onnxruntime, on top of what any process of ours takes; measured."""

BYTES_OF_A_WEIGHT = 36
"""The most that onnxruntime takes for a weight while it decodes it, as it keeps each step for a while; measured."""


def holds_onnx(path: Path) -> bool:
    """Tell whether a folder is an artifact of this format: it holds that file and no safetensors."""
    return (path / FILE_NAME).is_file() and not any(path.glob("*.safetensors"))


def _check(model_config: Mapping[str, Any], config: QuantizationConfig) -> None:
    if config.activations is not None:
        raise InvalidConfigError(
            f"format {NAME} holds weights alone; this job quantizes activations too",
            hint="Leave activations out, or ask for the format nupes.",
        )
    kind = model_config.get("model_type")
    decodes = model_config.get("is_decoder") or model_config.get("is_encoder_decoder")
    if kind not in MODEL_TYPES or decodes:
        raise UnsupportedArchitectureError(
            f"format {NAME} is written for encoders and convolution nets; this model is "
            f"{'a decoder of type ' if decodes else ''}{kind!r}",
            hint=f"Ask for the format nupes or dense; decoders also for compressed-tensors or gguf. "
            f"Model types with a graph: {', '.join(MODEL_TYPES)}.",
        )


def _memory(tensors: Sequence[PlannedTensor]) -> int:
    """Return what exporting the model, and loading the file, take on top of what any process of ours takes."""
    coded = sum(tensor.params for tensor in tensors if tensor.coding is not None)
    return EXPORT_BYTES + BYTES_OF_A_WEIGHT * coded + 4 * 4 * (sum(tensor.params for tensor in tensors) - coded)


ONNX = Format(
    name=NAME,
    specs=NATIVE.specs,
    pieces=NATIVE.pieces,
    config=NATIVE.config,
    snippet="import onnxruntime  # with `pip install onnxruntime`\n"
    'session = onnxruntime.InferenceSession("{path}/model.onnx")',
    check=_check,
    memory_bytes=_memory,
    most_bytes=MOST_BYTES,
    adds="graph",
)
