"""The dense format: quantized values in the original dtype, under the original names. Loads everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nupes_core.formats.base import Format, Pieces
from nupes_core.header import TensorSpec
from nupes_core.planned import PlannedTensor

if TYPE_CHECKING:
    import torch

    from nupes_core.quantizer.weight import QuantizedWeight


def _specs(tensor: PlannedTensor) -> tuple[TensorSpec, ...]:
    return (TensorSpec(tensor.name, tensor.dtype, tensor.shape),)


def _pieces(
    tensor: PlannedTensor, weight: QuantizedWeight, decoded: torch.Tensor, inputs: Mapping[str, torch.Tensor]
) -> Pieces:
    transposed = tensor.coding is not None and tensor.coding.view.transposed
    yield tensor.name, decoded.t() if transposed else decoded


def _config(
    source: Mapping[str, Any], tensors: tuple[PlannedTensor, ...], settings: Mapping[str, Any]
) -> dict[str, Any]:
    return dict(source)


DENSE = Format(
    name="dense",
    specs=_specs,
    pieces=_pieces,
    config=_config,
    snippet='from transformers import AutoModelForCausalLM\nmodel = AutoModelForCausalLM.from_pretrained("{path}")',
    weight_bytes=lambda tensor: tensor.bytes_before,
)
