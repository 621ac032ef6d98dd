"""Artifacts of format `compressed-tensors`, read by the package of that name: what consumers see of them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import torch
from safetensors import safe_open

from nupes_core.errors import UnsupportedArchitectureError
from nupes_core.modelfolder import ModelFolder

QUANT_METHOD = "compressed-tensors"
PARTS = ("packed", "scale", "shape")
"""Suffixes of what is stored of a weight."""


def require() -> None:
    """Check that the package is there.

    Raises:
        UnsupportedArchitectureError: it is not.
    """
    if importlib.util.find_spec("compressed_tensors") is None:
        raise UnsupportedArchitectureError(
            "weights of format compressed-tensors are read by the package compressed-tensors, which is not installed",
            hint="pip install compressed-tensors",
        )


def decompress(model: Any) -> Any:
    """Unpack all weights of a model that transformers just loaded, which would do so in its first forward pass."""
    model.hf_quantizer.compressor.decompress_model(model)
    return model


def sizes(folder: ModelFolder) -> list[tuple[int, int]]:
    """Return (parameters, stored bytes) of each quantized weight."""
    found = []
    for file, header in folder.headers.items():
        nbytes = {info.name: info.nbytes for info in header.tensors}
        with safe_open(folder.path / file, framework="pt", device="cpu") as tensors:
            for weight in (name.removesuffix("_packed") for name in nbytes if name.endswith(".weight_packed")):
                shape = tensors.get_tensor(f"{weight}_shape")
                found.append((int(shape.prod()), sum(nbytes[f"{weight}_{part}"] for part in PARTS)))
    return found


def decode(quantization_config: Mapping[str, Any], module: str, read: Callable[[str], torch.Tensor]) -> torch.Tensor:
    """Return the weight [rows, cols] of a module; `read` gives its stored parts by their suffix."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig

    config = QuantizationConfig.model_validate(dict(quantization_config))
    schemes = config.config_groups.values()
    scheme = next((each for each in schemes if module in each.targets), next(iter(schemes)))
    state = {f"weight_{part}": read(part) for part in PARTS}
    weight: torch.Tensor = BaseCompressor.get_value_from_registry(config.format).decompress(state, scheme)["weight"]
    return weight
