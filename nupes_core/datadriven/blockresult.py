"""What a block became, as tensors of the work folder: committed whole, so that another attempt resumes at the block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from nupes_core.checkpoint import ShardReader
from nupes_core.quantizer.weight import QuantizedWeight
from nupes_core.storage import WeightFormat, tensor_specs

_WEIGHT, _INPUT, _NORM, _SCALE, _MOVED, _CURVE = "weight", "input", "norm", "columns", "moved", "curve"


@dataclass(frozen=True)
class BlockResult:
    """A quantized block.

    Attributes:
        weights: stored form by layer path within the block.
        inputs: stored activation quantizer by layer path; empty where activations stay float.
        norms: changed parameters of norms, by name within the block, in the dtype of the checkpoint.
        columns: factors [cols] that smoothing moved from the inputs of a layer into its weight, by layer path.
        moved: share of codes that training changed, by layer path.
        curves: name -> points [n, 2] of (step, value), float32.
    """

    weights: Mapping[str, QuantizedWeight]
    inputs: Mapping[str, Mapping[str, torch.Tensor]] = field(default_factory=dict)
    norms: Mapping[str, torch.Tensor] = field(default_factory=dict)
    columns: Mapping[str, torch.Tensor] = field(default_factory=dict)
    moved: Mapping[str, float] = field(default_factory=dict)
    curves: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def to_tensors(self) -> dict[str, torch.Tensor]:
        """Return everything as named tensors."""
        parts = {_key(_WEIGHT, name, suffix): t for name, w in self.weights.items() for suffix, t in w.tensors.items()}
        parts |= {_key(_INPUT, name, suffix): t for name, each in self.inputs.items() for suffix, t in each.items()}
        parts |= {_key(_NORM, name): tensor for name, tensor in self.norms.items()}
        parts |= {_key(_SCALE, name): tensor for name, tensor in self.columns.items()}
        parts |= {_key(_MOVED, name): torch.tensor([share]) for name, share in self.moved.items()}
        return parts | {_key(_CURVE, name): tensor for name, tensor in self.curves.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor], formats: Mapping[str, WeightFormat]) -> BlockResult:
        """Read `to_tensors` output back; `formats` by layer path."""
        weights = {
            name: QuantizedWeight(fmt, {suffix: tensors[_key(_WEIGHT, name, suffix)] for suffix in tensor_specs(fmt)})
            for name, fmt in formats.items()
        }
        inputs: dict[str, dict[str, torch.Tensor]] = {}
        for key, tensor in _kind(tensors, _INPUT).items():
            name, _, suffix = key.partition("|")
            inputs.setdefault(name, {})[suffix] = tensor
        return cls(
            weights=weights,
            inputs=inputs,
            norms=_kind(tensors, _NORM),
            columns=_kind(tensors, _SCALE),
            moved={name: float(tensor) for name, tensor in _kind(tensors, _MOVED).items()},
            curves=_kind(tensors, _CURVE),
        )


@dataclass(frozen=True)
class CommittedLayer:
    """A layer in a committed block, read when it is written to the artifact.

    Attributes:
        path: file of the block.
        name: layer path within the block.
    """

    path: Path
    name: str

    def weight(self, fmt: WeightFormat) -> QuantizedWeight:
        """Read the stored weight."""
        with ShardReader(self.path) as reader:
            return QuantizedWeight(
                fmt, {each: reader.read(_key(_WEIGHT, self.name, each)) for each in tensor_specs(fmt)}
            )

    def inputs(self) -> dict[str, torch.Tensor]:
        """Read the stored activation quantizer; empty where there is none."""
        prefix = _key(_INPUT, self.name, "")
        with ShardReader(self.path) as reader:
            names = [info.name for info in reader.header.tensors if info.name.startswith(prefix)]
            return {name.removeprefix(prefix): reader.read(name) for name in names}

    def columns(self) -> torch.Tensor | None:
        """Read the factors that smoothing put into the weight."""
        return self._optional(_key(_SCALE, self.name))

    def moved(self) -> float | None:
        """Read the share of codes that training changed."""
        found = self._optional(_key(_MOVED, self.name))
        return None if found is None else float(found)

    def _optional(self, key: str) -> torch.Tensor | None:
        with ShardReader(self.path) as reader:
            present = any(info.name == key for info in reader.header.tensors)
            return reader.read(key) if present else None


def _key(kind: str, name: str, suffix: str | None = None) -> str:
    return f"{kind}|{name}" if suffix is None else f"{kind}|{name}|{suffix}"


def _kind(tensors: Mapping[str, torch.Tensor], kind: str) -> dict[str, torch.Tensor]:
    prefix = f"{kind}|"
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
