"""Plug-in for transformers 5: once this module is imported, `from_pretrained` loads native artifacts.

Linear layers (`nn.Linear`, GPT-2's `Conv1D`) stay quantized in memory. What transformers merges or transposes while it
loads (experts of a mixture) and what is no linear layer (embeddings) is handed to it decoded.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from safetensors import safe_open
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from nupes_core.activations import ActivationQuantizer, token_dims
from nupes_core.artifact import ARTIFACT_VERSION, QUANT_METHOD, StoredWeight, stored_weights
from nupes_core.checkpoint import TORCH_DTYPES
from nupes_core.layers import (
    REPLACEMENTS,
    QuantizedConv1D,
    QuantizedLayer,
    decode_stored,
    dequantize_modules,
)
from nupes_core.renaming import renamed, spellings
from nupes_core.storage import input_specs


@register_quantization_config(QUANT_METHOD)
class NupesConfig(QuantizationConfigMixin):
    """`quantization_config` of a native artifact; see `nupes_core/formats/README.md`."""

    def __init__(self, **kwargs: Any) -> None:
        kwargs.pop("quant_method", None)
        self.quant_method = QUANT_METHOD  # type: ignore[assignment]
        self.version: int = kwargs.pop("version", ARTIFACT_VERSION)
        self.formats: list[dict[str, Any]] = kwargs.pop("formats", [])
        self.tensors: dict[str, dict[str, Any]] = kwargs.pop("tensors", {})
        self.modules_to_not_convert: list[str] = kwargs.pop("modules_to_not_convert", [])
        for key, value in kwargs.items():
            setattr(self, key, value)

    def stored_weights(self) -> dict[str, StoredWeight]:
        """Return the quantized tensors by checkpoint name."""
        return stored_weights(self.to_dict())

    def only(self, names: Mapping[str, str]) -> NupesConfig:
        """Return a copy with some tensors alone, renamed: checkpoint name -> name in the model."""
        kept = copy.deepcopy(self)
        kept.tensors = {names[name]: entry for name, entry in self.tensors.items() if name in names}
        decoded = [name.removesuffix(".weight") for name in self.tensors if name not in names]
        kept.modules_to_not_convert = sorted({*self.modules_to_not_convert, *decoded})
        return kept


@register_quantizer(QUANT_METHOD)
class NupesHfQuantizer(HfQuantizer):
    """Prepares a model on the meta device for the tensors of a native artifact."""

    requires_calibration = True
    quantization_config: NupesConfig

    def __init__(self, quantization_config: NupesConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self.decoded: dict[str, StoredWeight] = {}

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        stored = self.quantization_config.stored_weights()
        settled = _settled_names(model, stored)
        kept = {name: target for name in settled if (target := _replaceable(model, stored[name], settled[name]))}
        for name, target in kept.items():
            _replace(model, target, stored[name])
        self.decoded = {name: entry for name, entry in stored.items() if name not in kept}
        # What is saved again is what the model holds: decoded tensors are float from now on.
        self.quantization_config = self.quantization_config.only(kept)
        return model

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        for module in model.modules():
            if isinstance(module, ActivationQuantizer):
                module.check()
        return model

    def _dequantize(self, model: Any, dtype: torch.dtype | None = None) -> Any:
        return dequantize_modules(model, dtype)

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        """Quantized modules save their own buffers."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Codes have no gradient."""
        return False

    def checkpoint(self, files: Iterable[str]) -> dict[str, Any]:
        """Return name -> lazily read tensor of all shards, with the tensors in `decoded` in their float form."""
        stored: dict[str, Any] = {}
        for file in files:
            shard: Any = safe_open(file, framework="pt", device="cpu")
            stored.update({name: shard.get_slice(name) for name in shard.keys()})  # noqa: SIM118 - no mapping
        for name, entry in self.decoded.items():
            parts = {f"{name}_{suffix}": stored.pop(f"{name}_{suffix}") for suffix in entry.parts}
            stored[name] = DecodedTensor(entry, parts)
            for own in input_specs() if entry.activation else ():  # what is decoded takes float inputs
                stored.pop(f"{name.removesuffix('.weight')}.{own}", None)
        return stored


class DecodedTensor:
    """Stands where transformers expects a slice of a file, and decodes a quantized tensor when it is read."""

    def __init__(self, entry: StoredWeight, parts: Mapping[str, Any]) -> None:
        self._entry, self._parts = entry, parts

    def __getitem__(self, index: Any) -> torch.Tensor:
        return decode_stored(self._entry, lambda name: self._parts[name][...])[index]

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the decoded tensor."""
        return TORCH_DTYPES[self._entry.dtype]

    def get_dtype(self) -> str:
        """Return the safetensors name of the dtype."""
        return self._entry.dtype

    def get_shape(self) -> list[int]:
        """Return the shape of the decoded tensor."""
        return list(self._entry.shape)


def _replaceable(model: Any, entry: StoredWeight, settled: str) -> str | None:
    """Return the model's name of a tensor that a quantized module can hold as it is stored, else None."""
    if entry.slices is not None:
        return None
    for name in spellings(model, settled):
        module = _linear(model, name)
        quantized = REPLACEMENTS.get(type(module))
        transposed = quantized is QuantizedConv1D
        if quantized is not None and transposed == entry.transposed and module.weight.shape == entry.shape:
            return name
    return None


def _linear(model: Any, name: str) -> Any:
    module, _, leaf = name.rpartition(".")
    try:
        return model.get_submodule(module) if leaf == "weight" else None
    except AttributeError:
        return None


def _settled_names(model: Any, stored: Mapping[str, StoredWeight]) -> dict[str, str]:
    """Return the checkpoint tensors that transformers neither transforms nor ties while loading, and their new names.

    A tensor that is renamed counts if all that is stored of it is renamed alike.
    """
    transforms = get_model_conversion_mapping(model)
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    shared = {*tied.keys(), *tied.values()}
    settled: dict[str, str] = {}
    for name, entry in stored.items():
        target = renamed(transforms, name)
        follow = target and all(
            renamed(transforms, part) == found
            for part, found in zip(_parts(name, entry), _parts(target, entry), strict=True)
        )
        if target and follow and not {name, target} & shared:
            settled[name] = target
    return settled


def _parts(name: str, entry: StoredWeight) -> list[str]:
    """Return the names of all that is stored of a weight and of its layer's input."""
    inputs = input_specs() if entry.activation else ()
    layer = name.removesuffix(".weight")
    return [*(f"{name}_{suffix}" for suffix in entry.parts), *(f"{layer}.{own}" for own in inputs)]


def _replace(model: Any, name: str, entry: StoredWeight) -> None:
    module_name = name.removesuffix(".weight")
    module: Any = model.get_submodule(module_name)
    quantized: QuantizedLayer = REPLACEMENTS[type(module)](entry.format, TORCH_DTYPES[entry.dtype], module)
    if entry.activation is not None:
        with torch.device(module.weight.device):
            quantized.input_quantizer = ActivationQuantizer(entry.activation, token_dims=token_dims(module))
    model.set_submodule(module_name, quantized)


def _decoding(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the step in which `from_pretrained` reads the shards: our quantizer reads them itself.

    transformers has no public way to hand a converter decoded tensors whose formats differ; this seam has had the same
    first four arguments from 5.3 to 5.23.
    """

    @functools.wraps(original)
    def load(model: Any, state_dict: Any, checkpoint_files: Any, load_config: Any, *args: Any, **kwargs: Any) -> Any:
        quantizer = getattr(load_config, "hf_quantizer", None)
        if not isinstance(quantizer, NupesHfQuantizer):
            return original(model, state_dict, checkpoint_files, load_config, *args, **kwargs)
        if quantizer.decoded and state_dict is None:
            state_dict = quantizer.checkpoint(checkpoint_files)
        dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
        result = original(model, state_dict, checkpoint_files, load_config, *args, **kwargs)
        _cast(model, dtypes, exempt=tuple(getattr(load_config, "dtype_plan", None) or ()))
        return result

    return load


def _cast(model: Any, dtypes: Mapping[str, torch.dtype], exempt: tuple[str, ...]) -> None:
    """Give parameters the dtype that the model was built in.

    Up to 5.9 at least, transformers leaves what it renames in the dtype of the file when a model is quantized.
    """
    for name, parameter in model.named_parameters():
        if parameter.dtype != dtypes.get(name, parameter.dtype) and not any(part in name for part in exempt):
            parameter.data = parameter.data.to(dtypes[name])


setattr(PreTrainedModel, "_load_pretrained_model", staticmethod(_decoding(PreTrainedModel._load_pretrained_model)))  # noqa: B010
