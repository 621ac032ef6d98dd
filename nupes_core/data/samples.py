"""Calibration samples: what a model is run on while it is quantized."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from nupes_core.errors import CalibrationError


@dataclass(frozen=True)
class Samples:
    """Inputs of a model, all samples of equal shape.

    Attributes:
        inputs: argument name -> tensor [n, …]: `input_ids` (and `attention_mask` where sequences are padded) of a
            language model or encoder, `pixel_values` of a vision model; the only key of a plain module is "", its first
            positional argument.
    """

    inputs: Mapping[str, torch.Tensor]

    def __post_init__(self) -> None:
        counts = {len(tensor) for tensor in self.inputs.values()}
        if len(counts) != 1 or 0 in counts:
            raise CalibrationError(
                f"calibration inputs hold {sorted(counts)} samples", hint="Give each input the same number, 1 or more."
            )

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def __getitem__(self, index: slice | torch.Tensor) -> Samples:
        return Samples({name: tensor[index] for name, tensor in self.inputs.items()})

    def batches(self, size: int) -> Iterator[Samples]:
        """Yield the samples in order, `size` at a time."""
        return (self[start : start + size] for start in range(0, len(self), size))

    def batches_alike(self, size: int) -> Iterator[tuple[Samples, int]]:
        """Yield the samples in order, `size` at a time, and how many samples of each batch count.

        Where any sample is padded, each batch gets a padded one on top: models call their blocks without a mask where
        none of a batch is, and masks of some batches alone could not be joined.
        """
        padded = torch.empty(0, dtype=torch.int64)
        if self.mask is not None:
            padded = (~self.mask).any(1).nonzero()[:1, 0]
        for start in range(0, len(self), size):
            index = torch.arange(start, min(start + size, len(self)))
            yield self[torch.cat([index, padded])], len(index)

    @property
    def mask(self) -> torch.Tensor | None:
        """Which positions count, bool [n, length]; None where all do."""
        mask = self.inputs.get("attention_mask")
        return None if mask is None or bool(mask.all()) else mask.bool()

    def sha256(self) -> str:
        """Return a digest of names, shapes and content."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.inputs.items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def call(self, model: torch.nn.Module) -> object:
        """Run a model on all of the samples at once."""
        if set(self.inputs) == {""}:
            return model(self.inputs[""])
        return model(**self.inputs)
