"""Quantized matrices committed one by one under the hash of all that decides them, so that a second attempt resumes."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from functools import cache
from pathlib import Path

import torch

from nupes_core.checkpoint import ShardReader, ShardWriter, tensor_bytes
from nupes_core.config import WeightConfig
from nupes_core.errors import UnsafeFileError
from nupes_core.header import TensorSpec, build_header
from nupes_core.storage import WeightFormat, tensor_specs
from nupes_core.weight import QuantizedWeight


class WorkFolder:
    """Content-addressed pieces of finished work; safe to share between jobs and to delete at any time."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def load(self, key: str, fmt: WeightFormat) -> QuantizedWeight | None:
        """Return the committed matrix, or None when there is none that is whole."""
        path = self._piece(key)
        if not path.is_file():
            return None
        try:
            with ShardReader(path) as reader:
                if {(t.name, t.dtype, t.shape) for t in reader.header.tensors} != _expected(fmt):
                    return None
                return QuantizedWeight(fmt, {suffix: reader.read(suffix) for suffix in tensor_specs(fmt)})
        except UnsafeFileError:
            return None

    def store(self, key: str, weight: QuantizedWeight) -> None:
        """Commit a matrix: whole under its name, or not at all.

        Raises:
            DiskFullError: no room left.
        """
        specs = tensor_specs(weight.format).items()
        head, header = build_header((TensorSpec(name, dtype, shape) for name, (shape, dtype) in specs), {})
        path = self._piece(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with ShardWriter(path, head, header) as writer:
            for suffix, tensor in weight.tensors.items():
                writer.write(suffix, tensor)

    def _piece(self, key: str) -> Path:
        return self.path / key[:2] / f"{key}.safetensors"


def commit_key(
    w: torch.Tensor, config: WeightConfig, importance: torch.Tensor | None, shared_exponent: float | None
) -> str:
    """Return the hash of everything that decides the codes of a matrix: its bytes, the resolved settings, the code."""
    settings = {"config": asdict(config), "shape": list(w.shape), "dtype": str(w.dtype), "shared": shared_exponent}
    digest = hashlib.sha256(code_version().encode())
    digest.update(json.dumps(settings, sort_keys=True).encode())
    digest.update(tensor_bytes(w))
    if importance is not None:
        digest.update(tensor_bytes(importance))
    return digest.hexdigest()


@cache
def code_version() -> str:
    """Return a hash of this package's own sources: any change of the method makes old commits unreachable."""
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.name.encode() + source.read_bytes())
    return digest.hexdigest()


def _expected(fmt: WeightFormat) -> set[tuple[str, str, tuple[int, ...]]]:
    return {(suffix, dtype, shape) for suffix, (shape, dtype) in tensor_specs(fmt).items()}
