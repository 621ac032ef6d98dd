"""Quantized matrices committed one by one under the hash of all that decides them, so that a second attempt resumes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch

from nupes_core.checkpoint import SAFETENSORS_DTYPES, ShardReader, ShardWriter, tensor_bytes
from nupes_core.codeversion import code_version
from nupes_core.config import WeightConfig
from nupes_core.errors import UnsafeFileError
from nupes_core.header import TensorSpec, build_header
from nupes_core.quantizer.weight import QuantizedWeight
from nupes_core.storage import WeightFormat, tensor_specs


class WorkFolder:
    """Content-addressed pieces of finished work; safe to share between jobs and to delete at any time."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def load(self, key: str, fmt: WeightFormat) -> QuantizedWeight | None:
        """Return the committed matrix, or None when there is none that is whole."""
        tensors = self.load_tensors(key)
        if tensors is None or {name: _kind(tensor) for name, tensor in tensors.items()} != tensor_specs(fmt):
            return None
        return QuantizedWeight(fmt, tensors)

    def store(self, key: str, weight: QuantizedWeight) -> None:
        """Commit a matrix: whole under its name, or not at all.

        Raises:
            DiskFullError: no room left.
        """
        self.store_tensors(key, weight.tensors)

    def load_tensors(self, key: str) -> dict[str, torch.Tensor] | None:
        """Return the tensors committed under a key, or None when there are none that are whole."""
        path = self.piece(key)
        if not path.is_file():
            return None
        try:
            with ShardReader(path) as reader:
                return {info.name: reader.read(info.name) for info in reader.header.tensors}
        except UnsafeFileError:
            return None

    def store_tensors(self, key: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Commit tensors: whole under their key, or not at all.

        Raises:
            DiskFullError: no room left.
        """
        specs = (TensorSpec(name, SAFETENSORS_DTYPES[t.dtype], tuple(t.shape)) for name, t in tensors.items())
        head, header = build_header(specs, {})
        path = self.piece(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with ShardWriter(path, head, header) as writer:
            for name, tensor in tensors.items():
                writer.write(name, tensor)

    def piece(self, key: str) -> Path:
        """Return where the file of a key lies."""
        return self.path / key[:2] / f"{key}.safetensors"


def commit_key(w: torch.Tensor, config: WeightConfig, shared_exponent: float | None) -> str:
    """Return the hash of everything that decides the codes of a matrix: its bytes, the resolved settings, the code."""
    settings = {"config": asdict(config), "shape": list(w.shape), "dtype": str(w.dtype), "shared": shared_exponent}
    digest = hashlib.sha256(code_version().encode())
    digest.update(json.dumps(settings, sort_keys=True).encode())
    digest.update(tensor_bytes(w))
    return digest.hexdigest()


def _kind(tensor: torch.Tensor) -> tuple[tuple[int, ...], str]:
    return tuple(tensor.shape), SAFETENSORS_DTYPES[tensor.dtype]
