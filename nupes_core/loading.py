"""Load a model folder — an artifact of any format, or a float model — from its files alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from nupes_core import packedlayers
from nupes_core.artifact import QUANT_METHOD, quant_method
from nupes_core.errors import LoadCheckError, UnsafeFileError, UnsupportedArchitectureError
from nupes_core.formats.onnx import holds_onnx
from nupes_core.gguf.model import holds_gguf, load_gguf
from nupes_core.modelfolder import ModelFolder, open_folder
from nupes_core.skeleton import build_config

_FOREIGN_FILES = ("adapter_config.json",)
"""Files that would make transformers load something else than the folder."""


def load(path: str | Path, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Any:
    """Load a model for inference. No network, no code from the folder.

    Args:
        path: folder with `config.json` and safetensors, or an artifact of format `gguf` or `onnx`.
        dtype: of the weights that are not quantized and of the computation; None takes the checkpoint's.
        device: where to put it; None leaves it on the CPU.

    Returns:
        transformers' `PreTrainedModel` in eval mode. Linear layers of a native artifact stay quantized in memory; all
        other quantized tensors (fused experts, embeddings, those of other formats) are decoded while loading. Of
        format `onnx` an `OnnxModel` that is called alike, run by onnxruntime on the CPU in float32.

    Raises:
        UnsafeFileError: the folder holds code, pickles or broken files.
        UnsupportedArchitectureError: transformers does not know the model, or not this kind of weights, or cannot build
            what the configuration describes.
        LoadCheckError: the folder lacks weights, or holds some that do not fit its configuration.
    """
    if holds_gguf(Path(path)):
        return load_gguf(Path(path), dtype).to(device or "cpu")
    if holds_onnx(Path(path)):
        from nupes_core.onnx.model import load_onnx

        return load_onnx(Path(path))
    folder = open_folder(path)
    _refuse_foreign(folder)
    method = quant_method(folder.config)
    if method not in _METHODS:
        raise UnsupportedArchitectureError(f"the model is quantized by {method!r}", hint="Give the original weights.")
    model_class = resolve_model_class(folder.config)
    prepare, finish = _METHODS[method]
    prepare()
    model = finish(_from_folder(model_class, folder, dtype))
    return model if device is None else model.to(device)


def _register_native() -> None:
    import nupes_core.integrations.transformers  # noqa: F401 - registers the method


def _as_it_is(model: Any) -> Any:
    return model


_METHODS: Mapping[object, tuple[Callable[[], None], Callable[[Any], Any]]] = {
    None: (lambda: None, _as_it_is),
    QUANT_METHOD: (_register_native, _as_it_is),
    packedlayers.QUANT_METHOD: (packedlayers.require, packedlayers.decompress),
}
"""What is done before and after transformers loads a folder, by the method that its weights are quantized by."""


def check_buildable(folder: ModelFolder) -> None:
    """Check, without reading a weight, that transformers can build what the configuration describes.

    Raises:
        UnsupportedArchitectureError: it does not know the model, or the configuration asks for one of another size.
    """
    build_config(resolve_model_class(folder.config), folder.config, folder.headers)


def resolve_model_class(config: Mapping[str, Any]) -> Any:
    """Return the transformers class that builds a model from this `config.json`.

    Raises:
        UnsupportedArchitectureError: transformers has no such `model_type`.
    """
    import transformers

    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in transformers.CONFIG_MAPPING:
        raise UnsupportedArchitectureError(
            f"transformers {transformers.__version__} does not know the model_type {model_type!r}",
            hint="It can still be quantized data-free; leave evaluation and load check out.",
        )
    config_class = transformers.CONFIG_MAPPING[model_type]
    for mapping in (transformers.MODEL_FOR_CAUSAL_LM_MAPPING, transformers.MODEL_MAPPING):
        architecture = _named_architecture(config)
        if architecture is not None and issubclass(architecture.config_class or object, config_class):
            return architecture
        if config_class in mapping:
            found = mapping[config_class]
            return found[0] if isinstance(found, tuple) else found
    raise UnsupportedArchitectureError(f"transformers has no model class for the model_type {model_type!r}")


def _named_architecture(config: Mapping[str, Any]) -> Any:
    """Return the class that `architectures` names, if it is one of transformers' models."""
    import transformers

    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    if not isinstance(name, str) or not name.isidentifier():
        return None
    found = getattr(transformers, name, None)
    is_model = isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)
    return found if is_model else None


def _refuse_foreign(folder: ModelFolder) -> None:
    for name in _FOREIGN_FILES:
        if (folder.path / name).exists():
            raise UnsafeFileError(
                f"the folder holds {name}, which points to another model", hint="Merge the adapter first."
            )


def _from_folder(model_class: Any, folder: ModelFolder, dtype: torch.dtype | None) -> Any:
    config = build_config(model_class, folder.config, folder.headers)
    try:
        model, info = model_class.from_pretrained(
            folder.path,
            config=config,
            dtype="auto" if dtype is None else dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # told below, by name and shape
        )
    except Exception as error:  # a stranger's files decide what goes wrong in there
        raise LoadCheckError(
            f"transformers cannot load {folder.path.name}: {error}",
            hint="Check that config.json fits the weights, and that the original loads in transformers.",
        ) from error
    _check_complete(folder, info)
    return model.eval()


def _check_complete(folder: ModelFolder, info: Mapping[str, Any]) -> None:
    for kind in ("missing_keys", "mismatched_keys", "conversion_errors", "error_msgs"):
        if info.get(kind):
            first = min(map(str, info[kind]))
            raise LoadCheckError(f"{folder.path.name}: {len(info[kind])} {kind.replace('_', ' ')}, such as {first}")
