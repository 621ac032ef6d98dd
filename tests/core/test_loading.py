"""`load` builds what transformers knows, from the folder's files alone, and refuses the rest."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import nupes_core
from nupes_core.errors import LoadCheckError, UnsafeFileError, UnsupportedArchitectureError
from nupes_core.layers import QuantizedLinear
from nupes_core.loading import load
from tests.core.tiny import QUICK, save


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save("llama", tmp_path / "source")


@pytest.fixture
def artifact(source: Path, tmp_path: Path) -> Path:
    nupes_core.quantize(source, tmp_path / "artifact", QUICK)
    return tmp_path / "artifact"


def _edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_float_folder_loads_in_the_dtype_asked_for(source: Path) -> None:
    assert load(source).dtype == torch.bfloat16
    assert load(source, dtype=torch.float32).dtype == torch.float32
    assert not load(source).training


def test_an_artifact_loads_in_a_fresh_process_by_the_documented_two_lines(artifact: Path) -> None:
    code = f"import nupes_core; model = nupes_core.load({str(artifact)!r}); print(model.is_quantized, model.dtype)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "torch.bfloat16"]


def test_quantized_layers_follow_the_dtype_of_the_model(artifact: Path) -> None:
    model = load(artifact)
    layer = model.model.layers[0].self_attn.q_proj
    assert isinstance(layer, QuantizedLinear)
    assert layer.weight.dtype == torch.bfloat16
    assert layer.to(torch.float32).weight.dtype == torch.float32
    wide = load(artifact, dtype=torch.float32)
    assert wide.model.layers[0].self_attn.q_proj.weight.dtype == torch.float32
    assert wide(torch.tensor([[1, 2, 3]])).logits.dtype == torch.float32


def test_the_package_stays_free_of_torch_until_it_is_used() -> None:
    code = "import sys, nupes_core; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_the_public_functions_stay_callable_after_their_modules_are_imported() -> None:
    for _ in range(2):
        assert all(callable(getattr(nupes_core, name)) for name in ("evaluate", "load", "quantize", "quantize_model"))


@pytest.mark.parametrize("name", ["modeling_evil.py", "pytorch_model.bin"])
def test_code_and_pickles_are_refused(source: Path, name: str) -> None:
    (source / name).write_bytes(b"print('run')")
    with pytest.raises(UnsafeFileError, match=name):
        load(source)


def test_an_adapter_that_names_another_model_is_refused(source: Path) -> None:
    (source / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/else"}')
    with pytest.raises(UnsafeFileError, match=r"adapter_config\.json"):
        load(source)


def test_code_named_by_the_configuration_is_not_followed(source: Path) -> None:
    _edit_config(source, auto_map={"AutoModelForCausalLM": "someone/else--modeling.Evil"})
    assert type(load(source)).__name__ == "LlamaForCausalLM"


def test_an_unknown_model_type_is_refused(source: Path) -> None:
    _edit_config(source, model_type="brandnew", architectures=["BrandNewForCausalLM"])
    with pytest.raises(UnsupportedArchitectureError, match="brandnew"):
        load(source)


def test_another_quantization_is_refused(source: Path) -> None:
    _edit_config(source, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(UnsupportedArchitectureError, match="gptq"):
        load(source)


def test_an_artifact_that_lacks_a_tensor_is_refused(artifact: Path) -> None:
    tensors = load_file(artifact / "model.safetensors")
    tensors.pop("model.layers.1.mlp.up_proj.weight_scales")
    save_file(tensors, artifact / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LoadCheckError, match=r"missing keys.*weight_scales"):
        load(artifact)


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"formats": []},
        {"formats": [{"rows": 4}]},
        {"tensors": {"model.layers.0.mlp.up_proj.weight": {"format": 0, "dtype": "I64"}}},
        {"tensors": ["x"]},
    ],
)
def test_a_broken_quantization_config_is_refused(artifact: Path, change: dict[str, Any]) -> None:
    config = json.loads((artifact / "config.json").read_text())
    _edit_config(artifact, quantization_config=config["quantization_config"] | change)
    with pytest.raises((UnsafeFileError, LoadCheckError), match="quantization_config"):
        load(artifact)


def test_a_format_that_does_not_fit_the_stored_tensors_is_refused(artifact: Path) -> None:
    config = json.loads((artifact / "config.json").read_text())["quantization_config"]
    for entry in config["formats"]:
        entry["bits"] = 3
    _edit_config(artifact, quantization_config=config)
    with pytest.raises(LoadCheckError):
        load(artifact)
