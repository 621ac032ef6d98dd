"""The `quantization_config` of a native artifact, read as untrusted data (`formats/README.md`). Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from math import prod
from typing import Any

from nupes_core.config import MAX_BITS, MIN_BITS, ActivationConfig
from nupes_core.errors import InvalidConfigError, UnsafeFileError
from nupes_core.storage import TensorSpec, WeightFormat, tensor_specs, weight_nbytes

QUANT_METHOD = "nupes"
ARTIFACT_VERSION = 1

_HINT = "Load the artifact as it was downloaded, with a release of nupes_core that is at least as new."


@dataclass(frozen=True)
class StoredWeight:
    """One quantized checkpoint tensor.

    Attributes:
        name: of the checkpoint tensor; its parts are stored as `<name>_<suffix>`.
        format: of each of its matrices.
        dtype: safetensors name of the dtype that the weight had and is decoded to.
        transposed: the checkpoint tensor holds [cols, rows].
        slices: number of fused matrices, coded one by one; None for a plain matrix.
        kernel: height and width of the kernels of a convolution, whose rows are [channels, height, width]; else empty.
        activation: how the input of the layer is coded; None leaves it float.
    """

    name: str
    format: WeightFormat
    dtype: str
    transposed: bool = False
    slices: int | None = None
    activation: ActivationConfig | None = None
    kernel: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the checkpoint tensor."""
        if self.kernel:
            return (self.format.rows, self.format.cols // prod(self.kernel), *self.kernel)
        matrix = (self.format.rows, self.format.cols)
        return (() if self.slices is None else (self.slices,)) + (matrix[::-1] if self.transposed else matrix)

    @property
    def params(self) -> int:
        """Number of weights."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the stored parts."""
        return weight_nbytes(self.format) * (self.slices or 1)

    @property
    def parts(self) -> dict[str, TensorSpec]:
        """Suffix -> (shape, safetensors dtype) of the stored parts."""
        stack = () if self.slices is None else (self.slices,)
        return {suffix: ((*stack, *shape), dtype) for suffix, (shape, dtype) in tensor_specs(self.format).items()}

    def to_dict(self) -> dict[str, Any]:
        """Return the entry of `quantization_config.tensors`, the format spelled out."""
        entry = {key: value for key, value in asdict(self).items() if key in {"format", "dtype"}}
        optional: dict[str, Any] = {
            "transposed": self.transposed or None,
            "slices": self.slices,
            "kernel": self.kernel or None,
        }
        if self.activation is not None:
            optional |= {"activation_bits": self.activation.bits, "activation_scaling": self.activation.scaling}
        return entry | {key: value for key, value in optional.items() if value is not None}


def stored_weights(quantization_config: Mapping[str, Any]) -> dict[str, StoredWeight]:
    """Return the quantized tensors of a native artifact by checkpoint name.

    Raises:
        UnsafeFileError: another method or version, or entries that do not fit together.
    """
    method, version = quantization_config.get("quant_method"), quantization_config.get("version")
    if method != QUANT_METHOD or version != ARTIFACT_VERSION:
        raise UnsafeFileError(
            f"quantization_config says {method!r} version {version!r}, not 'nupes' version 1", hint=_HINT
        )
    try:
        formats = [_format(entry) for entry in quantization_config["formats"]]
        activations = ActivationConfig(**quantization_config.get("activations") or {})
        tensors = quantization_config["tensors"].items()
        return {name: _stored_weight(name, formats, activations, entry) for name, entry in tensors}
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, InvalidConfigError) as error:
        raise UnsafeFileError(f"quantization_config is broken: {error!r}", hint=_HINT) from error


def is_native(config: Mapping[str, Any]) -> bool:
    """Tell whether a `config.json` is that of a native artifact."""
    return quant_method(config) == QUANT_METHOD


def quant_method(config: Mapping[str, Any]) -> object:
    """Return what a `config.json` says about how its weights are quantized; None for float weights."""
    quantization_config = config.get("quantization_config")
    return quantization_config.get("quant_method") if isinstance(quantization_config, Mapping) else None


def _stored_weight(
    name: str, formats: list[WeightFormat], activations: ActivationConfig, entry: Mapping[str, Any]
) -> StoredWeight:
    slices, bits, kernel = entry.get("slices"), entry.get("activation_bits"), tuple(map(int, entry.get("kernel", ())))
    if entry["dtype"] not in {"BF16", "F16", "F32"} or not (slices is None or 0 < slices < 1 << 31):
        raise ValueError(f"{name}: {dict(entry)}")
    transposed = bool(entry.get("transposed", False))
    activation = None if bits is None else replace(activations, bits=bits, scaling=entry["activation_scaling"])
    found = StoredWeight(name, formats[entry["format"]], entry["dtype"], transposed, slices, activation, kernel)
    if kernel and (len(kernel) != 2 or min(kernel) < 1 or transposed or slices or found.params != _matrix_size(found)):
        raise ValueError(f"{name}: kernel {kernel}")
    return found


def _matrix_size(weight: StoredWeight) -> int:
    return weight.format.rows * weight.format.cols


def _format(entry: Mapping[str, Any]) -> WeightFormat:
    fmt = WeightFormat(**entry)
    sizes = (fmt.rows, fmt.cols, fmt.group_size, fmt.word_bits, fmt.candidates, fmt.block_rows)
    if not all(type(size) is int and 0 < size < 1 << 31 for size in sizes) or not MIN_BITS <= fmt.bits <= MAX_BITS:
        raise ValueError(f"format {dict(entry)}")
    return fmt
