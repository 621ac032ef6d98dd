"""A native artifact loads through transformers and computes what its dense twin computes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoModel, AutoModelForCausalLM

import nupes_core
import nupes_core.integrations.transformers
from nupes_core.artifact import stored_weights
from nupes_core.layers import QuantizedConv1D, QuantizedLayer, QuantizedLinear
from nupes_core.loading import load
from nupes_core.modelfolder import open_folder
from nupes_core.probe import probe
from tests.core.tiny import BUILDERS, QUICK, save

Artifacts = dict[str, Path]


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Artifacts:
    """Family -> folder with the subfolders `nupes` and `dense`."""
    made = {}
    for family in BUILDERS:
        folder = tmp_path_factory.mktemp(family)
        source = save(family, folder / "source")
        nupes_core.quantize(source, folder / "out", QUICK, formats=("nupes", "dense"))
        made[family] = folder / "out"
    return made


def _quantized(model: torch.nn.Module) -> dict[str, QuantizedLayer]:
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLayer)}


@pytest.mark.parametrize("family", BUILDERS)
def test_native_and_dense_artifacts_compute_the_same(artifacts: Artifacts, family: str) -> None:
    native = load(artifacts[family] / "nupes", dtype=torch.float32)
    dense = load(artifacts[family] / "dense", dtype=torch.float32)
    left, right = probe(native), probe(dense)
    assert left is not None
    assert right is not None
    assert left.difference(right) < 1e-4


@pytest.mark.parametrize("family", BUILDERS)
def test_no_weight_is_missing_or_random(artifacts: Artifacts, family: str) -> None:
    model, info = type(load(artifacts[family] / "nupes")).from_pretrained(
        artifacts[family] / "nupes", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    assert model.is_quantized


@pytest.mark.parametrize(
    ("family", "kind", "count"),
    [
        ("llama", QuantizedLinear, 14),
        ("llama_tied", QuantizedLinear, 14),
        ("gpt2", QuantizedConv1D, 8),
        ("vit", QuantizedLinear, 13),  # renamed while it is loaded
    ],
)
def test_linear_layers_stay_quantized_in_memory(
    artifacts: Artifacts, family: str, kind: type[QuantizedLayer], count: int
) -> None:
    layers = _quantized(load(artifacts[family] / "nupes"))
    assert len(layers) == count
    assert {type(layer) for layer in layers.values()} == {kind}


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_experts_are_quantized_on_disk_and_decoded_in_memory(artifacts: Artifacts, family: str) -> None:
    folder = artifacts[family] / "nupes"
    stored = stored_weights(open_folder(folder).config["quantization_config"])
    assert any("experts" in name for name in stored)
    model = load(folder)
    assert len(_quantized(model)) == 8  # attention
    assert not any("experts" in name for name in _quantized(model))


def test_the_plug_in_is_enough_for_from_pretrained(artifacts: Artifacts) -> None:
    model = AutoModelForCausalLM.from_pretrained(artifacts["llama"] / "nupes")
    assert len(_quantized(model)) == 14
    assert model.generate(torch.tensor([[1, 5]]), max_new_tokens=4, do_sample=False, pad_token_id=0).shape == (1, 6)


def test_the_base_model_loads_from_the_artifact_of_the_whole(artifacts: Artifacts) -> None:
    base = AutoModel.from_pretrained(artifacts["llama"] / "nupes", dtype=torch.float32)
    whole = load(artifacts["llama"] / "nupes", dtype=torch.float32)
    tokens = torch.tensor([[1, 5, 9]])
    assert len(_quantized(base)) == 14
    assert torch.equal(base(tokens).last_hidden_state, whole.model(tokens).last_hidden_state)


@pytest.mark.parametrize("family", ["llama_tied", "gpt2", "mixtral", "gpt_oss"])
def test_what_is_saved_again_loads_again(artifacts: Artifacts, family: str, tmp_path: Path) -> None:
    first = load(artifacts[family] / "nupes", dtype=torch.float32)
    first.save_pretrained(tmp_path / "again")
    again = load(tmp_path / "again", dtype=torch.float32)
    assert sorted(_quantized(again)) == sorted(_quantized(first))
    left, right = probe(first), probe(again)
    assert left is not None
    assert right is not None
    assert left.difference(right) == 0


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_dequantize_gives_a_plain_model(artifacts: Artifacts, family: str, tmp_path: Path) -> None:
    model = load(artifacts[family] / "nupes", dtype=torch.float32)
    before = probe(model)
    plain = model.dequantize()
    assert before is not None
    after = probe(plain)
    assert after is not None
    assert before.difference(after) < 1e-5
    assert not _quantized(plain)
    plain.save_pretrained(tmp_path / "plain")
    assert open_folder(tmp_path / "plain").config.get("quantization_config") is None
    assert load(tmp_path / "plain", dtype=torch.float32) is not None


def test_a_quantized_head_that_is_not_tied_loads(tmp_path: Path) -> None:
    source = save("llama", tmp_path / "source")
    config = replace(QUICK, layers=replace(QUICK.layers, exclude=(), embeddings=True))
    nupes_core.quantize(source, tmp_path / "out", config, formats=("nupes", "dense"))
    native = load(tmp_path / "out" / "nupes", dtype=torch.float32)
    assert isinstance(native.lm_head, QuantizedLinear)
    left, right = probe(native), probe(load(tmp_path / "out" / "dense", dtype=torch.float32))
    assert left is not None
    assert right is not None
    assert left.difference(right) < 1e-4


def test_quantized_embeddings_shared_with_the_head_load(tmp_path: Path) -> None:
    source = save("llama_tied", tmp_path / "source")
    config = replace(QUICK, layers=replace(QUICK.layers, exclude=(), embeddings=True))
    nupes_core.quantize(source, tmp_path / "out", config)
    model = load(tmp_path / "out")
    assert "model.embed_tokens.weight" in stored_weights(open_folder(tmp_path / "out").config["quantization_config"])
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_quantizing_while_loading_is_refused_with_a_reason(tmp_path: Path) -> None:
    source = save("llama", tmp_path / "source")
    config = nupes_core.integrations.transformers.NupesConfig()
    with pytest.raises(ValueError, match="does require the model to be pre-quantized"):
        transformers.AutoModelForCausalLM.from_pretrained(source, quantization_config=config)
