"""Checked safetensors headers as JSON, for the column `models.headers`: planning needs no byte of the model again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nupes_core.header import Header, TensorInfo


def to_json(headers: Mapping[str, Header]) -> dict[str, Any]:
    """Per file its header length, metadata and tensors as `[name, dtype, shape, begin, end]`."""
    return {name: _dump(header) for name, header in headers.items()}


def from_json(stored: Mapping[str, Any]) -> dict[str, Header]:
    """The inverse of `to_json`."""
    return {name: _load(header) for name, header in stored.items()}


def _dump(header: Header) -> dict[str, Any]:
    return {
        "header_bytes": header.header_bytes,
        "metadata": dict(header.metadata),
        "tensors": [[info.name, info.dtype, list(info.shape), info.begin, info.end] for info in header.tensors],
    }


def _load(stored: Mapping[str, Any]) -> Header:
    tensors = tuple(
        TensorInfo(name, dtype, tuple(shape), begin, end) for name, dtype, shape, begin, end in stored["tensors"]
    )
    return Header(tensors, stored["header_bytes"], stored["metadata"])
