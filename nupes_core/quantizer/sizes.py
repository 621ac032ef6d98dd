"""Bits per weight, all side information counted (method §8)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from torch import nn

from nupes_core import packedlayers
from nupes_core.artifact import is_native, quant_method, stored_weights
from nupes_core.formats.onnx import holds_onnx
from nupes_core.gguf.model import gguf_sizes, holds_gguf
from nupes_core.layers import QuantizedLayer
from nupes_core.modelfolder import open_folder


def model_bits_per_weight(source: str | Path | nn.Module) -> float | None:
    """Return stored bytes x 8 / parameters of the quantized tensors, or of all tensors where none is quantized.

    A folder is read by its headers; a module counts the quantized layers it holds. None for a model without weights.
    """
    sizes = _module_sizes(source) if isinstance(source, nn.Module) else _folder_sizes(source)
    params, stored = (sum(column) for column in zip((0, 0), *sizes, strict=True))
    return 8 * stored / params if params else None


def _folder_sizes(path: str | Path) -> Iterable[tuple[int, int]]:
    if holds_gguf(Path(path)):
        return gguf_sizes(Path(path))
    if holds_onnx(Path(path)):
        from nupes_core.onnx.model import onnx_sizes

        return onnx_sizes(Path(path))
    folder = open_folder(path)
    if is_native(folder.config):
        return [(entry.params, entry.nbytes) for entry in stored_weights(folder.config["quantization_config"]).values()]
    if quant_method(folder.config) == packedlayers.QUANT_METHOD:
        return packedlayers.sizes(folder)
    return [(tensor.params, tensor.nbytes) for header in folder.headers.values() for tensor in header.tensors]


def _module_sizes(model: nn.Module) -> Iterable[tuple[int, int]]:
    layers = [module for module in model.modules() if isinstance(module, QuantizedLayer)]
    if layers:
        return [(layer.format.rows * layer.format.cols, layer.quantized.nbytes) for layer in layers]
    return [(parameter.numel(), parameter.nbytes) for parameter in model.parameters()]
