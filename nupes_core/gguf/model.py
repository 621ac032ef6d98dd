"""Artifacts of format `gguf` as consumers see them: loaded by transformers' reader, decoded by the package `gguf`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from nupes_core.errors import LoadCheckError
from nupes_core.formats.gguf import FILE_NAME
from nupes_core.gguf.architectures import ARCHITECTURES
from nupes_core.gguf.blocktypes import TYPES
from nupes_core.modelfolder import CONFIG_NAME, read_config


def holds_gguf(path: Path) -> bool:
    """Tell whether a folder is an artifact of this format: it holds that file and no safetensors."""
    return (path / FILE_NAME).is_file() and not any(path.glob("*.safetensors"))


def load_gguf(path: Path, dtype: torch.dtype | None) -> Any:
    """Load the model, every weight decoded.

    The configuration comes from `config.json`: transformers' reader does not take scaled rotary positions out of the
    file.

    Raises:
        LoadCheckError: transformers cannot load it.
    """
    from transformers import AutoModelForCausalLM

    try:
        model: Any = AutoModelForCausalLM.from_pretrained(  # nosec B615 - a local folder
            path,
            gguf_file=FILE_NAME,
            config=_config(path),
            dtype=dtype or torch.float32,
            local_files_only=True,
            trust_remote_code=False,
        )
    except Exception as error:
        raise LoadCheckError(f"transformers cannot load {path.name}: {error}", hint="Download it again.") from error
    return model.eval()


def _config(path: Path) -> Any:
    """Return what `config.json` says as a configuration of the architecture in the file: a Mistral is a llama there."""
    from transformers import AutoConfig

    raw, _ = read_config(path / CONFIG_NAME)
    told = {key: value for key, value in raw.items() if key not in ("model_type", "architectures")}
    return AutoConfig.for_model(ARCHITECTURES[raw["model_type"]].reader, **told)


def decoded_gguf(path: Path, modules: Iterable[str]) -> Iterable[tuple[str, torch.Tensor]]:
    """Yield (module, weight [rows, cols] in float32), rows in the order of the checkpoint."""
    import gguf

    config, _ = read_config(path / CONFIG_NAME)
    architecture = ARCHITECTURES[config["model_type"]]
    kind = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == architecture.name)
    names = gguf.get_tensor_name_map(kind, config["num_hidden_layers"])
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path / FILE_NAME).tensors}
    heads = architecture.interleaved or {}
    for module in modules:
        tensor = stored[str(names.get_name(f"{module}.weight", try_suffixes=(".weight",)))]
        weight = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
        key = heads.get(module.rpartition(".")[2])
        if key is not None:
            count = config.get(key) or config["num_attention_heads"]
            weight = weight.view(count, -1, 2, weight.shape[-1]).transpose(1, 2).reshape(weight.shape)
        yield module, weight


def gguf_sizes(path: Path) -> list[tuple[int, int]]:
    """Return (parameters, stored bytes) of each quantized weight."""
    import gguf

    return [
        (int(tensor.n_elements), TYPES[tensor.tensor_type.name].row_bytes(int(tensor.n_elements)))
        for tensor in gguf.GGUFReader(path / FILE_NAME).tensors
        if tensor.tensor_type.name in TYPES
    ]
