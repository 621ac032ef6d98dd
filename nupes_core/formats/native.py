"""The native format: stored tensors of NUPES beside the tensors left alone (specified in README.md)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nupes_core.artifact import ARTIFACT_VERSION, QUANT_METHOD
from nupes_core.formats.base import Format, Pieces
from nupes_core.header import TensorSpec
from nupes_core.planned import Coding, PlannedTensor
from nupes_core.storage import input_specs, tensor_specs

if TYPE_CHECKING:
    import torch

    from nupes_core.quantizer.weight import QuantizedWeight


def stored_name(tensor: str, suffix: str) -> str:
    """Return the name of a stored tensor of a checkpoint tensor."""
    return f"{tensor}_{suffix}"


def _specs(tensor: PlannedTensor) -> tuple[TensorSpec, ...]:
    coding = _coding(tensor)
    fused = () if coding.view.slices is None else (coding.view.slices,)
    stored = tensor_specs(coding.format).items()
    weight = tuple(
        TensorSpec(stored_name(tensor.name, suffix), dtype, (*fused, *shape)) for suffix, (shape, dtype) in stored
    )
    inputs = {} if coding.activation is None else input_specs()
    return weight + tuple(TensorSpec(f"{tensor.module}.{n}", dtype, shape) for n, (shape, dtype) in inputs.items())


def _pieces(
    tensor: PlannedTensor, weight: QuantizedWeight, decoded: torch.Tensor, inputs: Mapping[str, torch.Tensor]
) -> Pieces:
    for suffix, content in weight.tensors.items():
        yield stored_name(tensor.name, suffix), content
    for name, content in inputs.items():
        yield f"{tensor.module}.{name}", content


def _config(
    source: Mapping[str, Any], tensors: tuple[PlannedTensor, ...], settings: Mapping[str, Any]
) -> dict[str, Any]:
    formats: list[dict[str, Any]] = []
    entries: dict[str, dict[str, Any]] = {}
    left_alone: list[str] = []
    for tensor in tensors:
        if tensor.coding is not None:
            entries[tensor.name] = _entry(tensor, tensor.coding, formats)
        elif len(tensor.shape) >= 2 and tensor.name != tensor.module:
            left_alone.append(tensor.module)
    quantization = {
        "quant_method": QUANT_METHOD,
        "version": ARTIFACT_VERSION,
        "bits": settings["weights"]["bits"],
        "group_size": settings["weights"]["group_size"],
        "modules_to_not_convert": left_alone,
        "formats": formats,
        "tensors": entries,
    }
    if settings["activations"] is not None:
        quantization["activations"] = settings["activations"]
    return {**source, "quantization_config": quantization}


def _entry(tensor: PlannedTensor, coding: Coding, formats: list[dict[str, Any]]) -> dict[str, Any]:
    stored = coding.format.to_dict()
    if stored not in formats:
        formats.append(stored)
    entry: dict[str, Any] = {"format": formats.index(stored), "dtype": tensor.dtype}
    if coding.view.transposed:
        entry["transposed"] = True
    if coding.view.slices is not None:
        entry["slices"] = coding.view.slices
    if coding.view.kernel:
        entry["kernel"] = list(coding.view.kernel)
    if coding.activation is not None:
        entry |= {"activation_bits": coding.activation.bits, "activation_scaling": coding.activation.scaling}
    return entry


def _coding(tensor: PlannedTensor) -> Coding:
    assert tensor.coding is not None, f"{tensor.name} is not quantized"
    return tensor.coding


NATIVE = Format(
    name="nupes",
    specs=_specs,
    pieces=_pieces,
    config=_config,
    snippet='import nupes_core\nmodel = nupes_core.load("{path}")',
    holds_input_codes=True,
)
