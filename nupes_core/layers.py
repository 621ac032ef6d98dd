"""Modules that hold a quantized weight and decode it when they are called."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from nupes_core.activations import ActivationQuantizer
from nupes_core.artifact import StoredWeight
from nupes_core.checkpoint import TORCH_DTYPES
from nupes_core.errors import UnsafeFileError
from nupes_core.quantizer.weight import QuantizedWeight
from nupes_core.storage import WeightFormat, tensor_specs


class QuantizedLayer(nn.Module, ABC):
    """Base of the modules below: a bias, and the stored parts of a weight matrix as buffers `weight_<suffix>`.

    Where activations are quantized, `input_quantizer` codes the input of each call. The decoded weight is not kept:
    memory stays that of the codes, each call pays for decoding.

    Args:
        format: of the matrix [rows = outputs, cols = inputs].
        weight_dtype: dtype that the weight had in the checkpoint; it is decoded to that, then cast.
        like: the float module that this one stands for; gives bias, device (e.g. `meta` before a checkpoint is loaded)
            and the dtype of the model.
    """

    bias: nn.Parameter | None
    input_quantizer: ActivationQuantizer | None

    def __init__(self, format: WeightFormat, weight_dtype: torch.dtype, like: Any) -> None:  # noqa: A002
        super().__init__()
        self.format, self.weight_dtype = format, weight_dtype
        self.dtype: torch.dtype = like.weight.dtype
        for suffix, (shape, stored) in tensor_specs(format).items():
            empty = torch.empty(shape, dtype=TORCH_DTYPES[stored], device=like.weight.device)
            self.register_buffer(f"weight_{suffix}", empty)
        self.register_parameter("bias", like.bias)
        self.register_module("input_quantizer", None)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        """Follow `model.to(dtype)`, although no buffer changes."""
        self.dtype = fn(torch.empty(0, dtype=self.dtype)).dtype
        return super()._apply(fn, recurse)  # type: ignore[no-any-return, no-untyped-call]

    @property
    def quantized(self) -> QuantizedWeight:
        """The weight in its stored form."""
        tensors = {suffix: getattr(self, f"weight_{suffix}") for suffix in tensor_specs(self.format)}
        return QuantizedWeight(self.format, tensors)

    @quantized.setter
    def quantized(self, weight: QuantizedWeight) -> None:
        for suffix, tensor in weight.tensors.items():
            setattr(self, f"weight_{suffix}", tensor)

    def matrix(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Decode the weight [rows, cols], to the dtype of the model by default."""
        return self.quantized.dequantize(self.weight_dtype).to(dtype or self.dtype)

    @property
    def weight(self) -> torch.Tensor:
        """The decoded weight in the shape and dtype that the float module has, for code that looks at it."""
        return self.matrix()

    def coded(self, x: torch.Tensor) -> torch.Tensor:
        """Return the input as the layer computes with it."""
        return x if self.input_quantizer is None else self.input_quantizer(x)

    @abstractmethod
    def to_float(self, dtype: torch.dtype | None = None) -> nn.Module:
        """Return the float module with the decoded weight, in `dtype` or that of the model; its input stays float."""

    def extra_repr(self) -> str:
        """Describe the format."""
        fmt = self.format
        return f"in={fmt.cols}, out={fmt.rows}, bits={fmt.bits}, group_size={fmt.group_size}, layout={fmt.layout}"


class QuantizedLinear(QuantizedLayer):
    """`nn.Linear` with a quantized weight."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [..., cols] to [..., rows]."""
        return functional.linear(self.coded(x), self.matrix(x.dtype), self.bias)

    def to_float(self, dtype: torch.dtype | None = None) -> nn.Module:
        """Return an `nn.Linear`."""
        with torch.device("meta"):
            linear = nn.Linear(self.format.cols, self.format.rows, bias=False)
        linear.weight = nn.Parameter(self.matrix(dtype), requires_grad=False)
        linear.register_parameter("bias", self.bias)
        return linear


class QuantizedConv1D(QuantizedLayer):
    """GPT-2's `Conv1D`, a linear layer that stores [in, out], with a quantized weight (of the transpose)."""

    def __init__(self, format: WeightFormat, weight_dtype: torch.dtype, like: Any) -> None:  # noqa: A002
        super().__init__(format, weight_dtype, like)
        self.nx, self.nf = format.cols, format.rows

    @property
    def weight(self) -> torch.Tensor:
        """The decoded weight [in, out]."""
        return self.matrix().T

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [..., cols] to [..., rows]."""
        return functional.linear(self.coded(x), self.matrix(x.dtype), self.bias)

    def to_float(self, dtype: torch.dtype | None = None) -> nn.Module:
        """Return a `Conv1D`."""
        with torch.device("meta"):
            conv: nn.Module = Conv1D(self.nf, self.nx)  # type: ignore[no-untyped-call]
        conv.weight = nn.Parameter(self.matrix(dtype).T.contiguous(), requires_grad=False)
        conv.register_parameter("bias", self.bias)
        return conv


_GEOMETRY = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")


class QuantizedConv2d(QuantizedLayer):
    """`nn.Conv2d` whose kernel is quantized as rows [out, in/groups · height · width]."""

    def __init__(self, format: WeightFormat, weight_dtype: torch.dtype, like: Any) -> None:  # noqa: A002
        super().__init__(format, weight_dtype, like)
        self.geometry = {name: getattr(like, name) for name in _GEOMETRY}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [n, in, height, width] to [n, out, …]."""
        found: torch.Tensor = self.to_float(x.dtype)(self.coded(x))
        return found

    @property
    def weight(self) -> torch.Tensor:
        """The decoded kernel [out, in/groups, height, width]."""
        return self._kernel(self.dtype)

    def to_float(self, dtype: torch.dtype | None = None) -> nn.Module:
        """Return an `nn.Conv2d`."""
        with torch.device("meta"):
            conv = nn.Conv2d(**self.geometry, bias=False)
        conv.weight = nn.Parameter(self._kernel(dtype), requires_grad=False)
        conv.register_parameter("bias", self.bias)
        return conv

    def _kernel(self, dtype: torch.dtype | None) -> torch.Tensor:
        return self.matrix(dtype).view(self.format.rows, -1, *self.geometry["kernel_size"])


REPLACEMENTS: dict[type[nn.Module], type[Any]] = {
    nn.Linear: QuantizedLinear,
    Conv1D: QuantizedConv1D,
    nn.Conv2d: QuantizedConv2d,
}
"""Float module -> quantized module. By exact type: a subclass may compute something else with its weight."""


def dequantize_modules(model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """Put float modules with the decoded weights in the place of all quantized ones; return the model.

    Inputs of layers are not coded any more.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, QuantizedLayer):
            model.set_submodule(name, module.to_float(dtype))
    return model


def decode_weights(model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """Decode all quantized weights once, for a model that is run often; return the model, which computes the same.

    As `dequantize_modules`, but layers go on coding their inputs.
    """
    quantizers = {
        name: module.input_quantizer for name, module in model.named_modules() if isinstance(module, QuantizedLayer)
    }
    dequantize_modules(model, dtype)
    for name, quantizer in quantizers.items():
        if quantizer is not None:
            layer = model.get_submodule(name)
            layer.add_module("input_quantizer", quantizer)
            layer.register_forward_pre_hook(_code_input)
    return model


def _code_input(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return (layer.get_submodule("input_quantizer")(inputs[0]), *inputs[1:])


def decode_stored(entry: StoredWeight, read: Callable[[str], torch.Tensor]) -> torch.Tensor:
    """Decode one checkpoint tensor to its own shape and dtype.

    Args:
        entry: what is stored.
        read: returns a stored tensor by its name.

    Raises:
        UnsafeFileError: a stored part has another shape or dtype than the entry says.
    """
    tensors = {suffix: _part(entry, suffix, read(f"{entry.name}_{suffix}")) for suffix in entry.parts}
    dtype = TORCH_DTYPES[entry.dtype]
    if entry.slices is None:
        out = QuantizedWeight(entry.format, tensors).dequantize(dtype)
    else:
        each = [{suffix: part[index] for suffix, part in tensors.items()} for index in range(entry.slices)]
        out = torch.stack([QuantizedWeight(entry.format, parts).dequantize(dtype) for parts in each])
    return (out.transpose(-2, -1).contiguous() if entry.transposed else out).view(entry.shape)


def _part(entry: StoredWeight, suffix: str, tensor: torch.Tensor) -> torch.Tensor:
    shape, dtype = entry.parts[suffix]
    if tuple(tensor.shape) != shape or tensor.dtype != TORCH_DTYPES[dtype]:
        found = f"{tuple(tensor.shape)} {tensor.dtype}"
        raise UnsafeFileError(f"{entry.name}_{suffix} is {found}; its entry says {shape} {dtype}")
    return tensor
