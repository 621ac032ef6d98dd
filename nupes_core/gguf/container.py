"""Puts a GGUF file together: tensors under llama.cpp's names and in its order of rows, metadata, vocabulary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from nupes_core.formats.gguf import FILE_NAME, is_written
from nupes_core.gguf.architectures import Architecture, architecture_of, head_dim
from nupes_core.gguf.blocktypes import type_of
from nupes_core.gguf.rotary import TENSOR_NAME, rotary
from nupes_core.gguf.vocabulary import add_vocabulary
from nupes_core.modelfolder import INDEX_NAME, open_folder
from nupes_core.planned import PlannedTensor
from nupes_core.sources import Checkpoint


def pack(folder: Path, tensors: Sequence[PlannedTensor]) -> None:
    """Turn the safetensors files of a folder, whose quantized tensors hold blocks, into `model.gguf`; remove them.

    Raises:
        OSError: no room for the file.
    """
    model = open_folder(folder)
    architecture = architecture_of(model.config)
    names = _names(architecture, model.config, tensors)
    writer = gguf.GGUFWriter(folder / FILE_NAME, architecture.name)
    _describe(writer, model.config)
    _add_positions(writer, model.config, architecture)
    add_vocabulary(writer, folder, int(model.config["vocab_size"]))
    divisors = _divisors(model.config)
    with Checkpoint(model) as checkpoint:
        if divisors is not None:
            writer.add_tensor_info(TENSOR_NAME, divisors.shape, divisors.dtype, divisors.nbytes)
        for tensor in tensors:
            if name := names.get(tensor.name):
                shape, kind = _stored(tensor, checkpoint.info(tensor.name).shape)
                writer.add_tensor_info(name, shape, np.dtype(np.uint8), int(np.prod(shape)), kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if divisors is not None:
            writer.write_tensor_data(divisors)
        for tensor in tensors:
            if tensor.name in names:
                content = checkpoint.read(tensor.name)
                writer.write_tensor_data(_content(tensor, content, architecture, model.config))
    writer.close()
    for name in (*model.headers, INDEX_NAME):
        (folder / name).unlink(missing_ok=True)


def _names(architecture: Architecture, config: Mapping[str, Any], tensors: Sequence[PlannedTensor]) -> dict[str, str]:
    """Return checkpoint name -> name in the file, without what is not written."""
    kind = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == architecture.name)
    known = gguf.get_tensor_name_map(kind, int(config["num_hidden_layers"]))
    tied = config.get("tie_word_embeddings") is True
    names = {}
    for tensor in tensors:
        if is_written(tensor, tied=tied):
            name = known.get_name(tensor.name, try_suffixes=(".weight", ".bias"))
            assert name is not None, f"{tensor.name} has no name in architecture {architecture.name}"
            names[tensor.name] = name
    return names


def _stored(tensor: PlannedTensor, shape: tuple[int, ...]) -> tuple[tuple[int, ...], gguf.GGMLQuantizationType]:
    """Return the shape in bytes and the type of a tensor in the file; vectors are float32 there."""
    if tensor.coding is not None:
        fmt = tensor.coding.format
        return shape, gguf.GGMLQuantizationType[type_of(fmt.layout, fmt.bits).name]
    if len(shape) == 1:
        return (4 * shape[0],), gguf.GGMLQuantizationType.F32
    kind = gguf.GGMLQuantizationType[tensor.dtype]
    return (*shape[:-1], shape[-1] * (4 if tensor.dtype == "F32" else 2)), kind


def _content(
    tensor: PlannedTensor, content: torch.Tensor, architecture: Architecture, config: Mapping[str, Any]
) -> np.ndarray[Any, Any]:
    heads = (architecture.interleaved or {}).get(tensor.module.rpartition(".")[2])
    if heads is not None:
        count = int(config.get(heads) or config["num_attention_heads"])
        content = content.view(count, 2, -1, content.shape[-1]).transpose(1, 2).reshape(content.shape)
    found = content.float() if content.dim() == 1 else content
    if tensor.name.endswith("norm.weight"):
        found = found + architecture.norm_offset
    blob: np.ndarray[Any, Any] = found.contiguous().view(torch.uint8).numpy()
    return blob


def _describe(writer: gguf.GGUFWriter, config: Mapping[str, Any]) -> None:
    heads = int(config["num_attention_heads"])
    writer.add_context_length(int(config["max_position_embeddings"]))
    writer.add_embedding_length(int(config["hidden_size"]))
    writer.add_block_count(int(config["num_hidden_layers"]))
    writer.add_feed_forward_length(int(config["intermediate_size"]))
    writer.add_head_count(heads)
    writer.add_head_count_kv(int(config.get("num_key_value_heads") or heads))
    writer.add_key_length(head_dim(config))
    writer.add_value_length(head_dim(config))
    writer.add_layer_norm_rms_eps(float(config.get("rms_norm_eps", 1e-6)))
    writer.add_vocab_size(int(config["vocab_size"]))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _add_positions(writer: gguf.GGUFWriter, config: Mapping[str, Any], architecture: Architecture) -> None:
    positions = rotary(config, architecture.base)
    writer.add_rope_dimension_count(head_dim(config))
    writer.add_rope_freq_base(positions.base)
    if positions.linear != 1:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(positions.linear)
    if architecture.windowed:
        writer.add_sliding_window(int(config["sliding_window"]))


def _divisors(config: Mapping[str, Any]) -> np.ndarray[Any, Any] | None:
    found = rotary(config).divisors(head_dim(config))
    return None if found is None else np.array(found, dtype=np.float32)
