"""Safetensors files built by hand, right and wrong ones, and model folders around them."""

from __future__ import annotations

import json
import struct
from typing import Any

from nupes_core.header import DTYPE_BYTES

CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 4}


def safetensors(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A file with this header (JSON-encoded unless it is bytes) and these bytes behind it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def good(names: tuple[str, ...] = ("layer.weight",), dtype: str = "F32", shape: tuple[int, ...] = (2, 3)) -> bytes:
    """A file of zeros."""
    size = DTYPE_BYTES[dtype]
    for extent in shape:
        size *= extent
    entries = {
        name: {"dtype": dtype, "shape": list(shape), "data_offsets": [index * size, (index + 1) * size]}
        for index, name in enumerate(names)
    }
    return safetensors(entries, b"\x00" * size * len(names))


def folder(**files: bytes) -> dict[str, bytes]:
    """A small complete model; keyword `a__b` adds or replaces the file `a.b`."""
    base = {"config.json": json.dumps(CONFIG).encode(), "model.safetensors": good()}
    return base | {name.replace("__", "."): content for name, content in files.items()}


def sharded(shards: int = 2) -> dict[str, bytes]:
    """A model in several shards with an index."""
    names = [f"model-{number:05}-of-{shards:05}.safetensors" for number in range(1, shards + 1)]
    index = {"metadata": {}, "weight_map": {f"layer.{number}.weight": name for number, name in enumerate(names)}}
    files = {name: good((f"layer.{number}.weight",), "BF16") for number, name in enumerate(names)}
    extra = {"config.json": json.dumps(CONFIG).encode(), "model.safetensors.index.json": json.dumps(index).encode()}
    return files | extra
