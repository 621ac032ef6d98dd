"""Artifacts whose layers have coded inputs: sizes, what a loaded model computes, what a stranger may have changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import nupes_core
import nupes_core.integrations.transformers
from nupes_core.activations import ActivationQuantizer
from nupes_core.check import verify_artifact
from nupes_core.config import ActivationConfig, QuantizationConfig, WeightConfig
from nupes_core.data.samples import Samples
from nupes_core.errors import LoadCheckError, UnsafeFileError
from nupes_core.layers import QuantizedLayer
from nupes_core.loading import load
from nupes_core.manifest import finalize
from nupes_core.plan import plan_folder
from nupes_core.probe import probe, probe_folder
from tests.core.tiny import QUICK, save
from tests.worker.factory import write_tiny_llama

DYNAMIC = replace(QUICK, activations=ActivationConfig(8))
STATIC = replace(
    QUICK,
    activations=ActivationConfig(4, "power", "static"),
    calibration=nupes_core.config.CalibrationConfig(samples=8, length=16),
)
LAYER = "model.layers.0.mlp.down_proj"
CODES = f"{LAYER}.input_quantizer.codes"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("llama", tmp_path_factory.mktemp("source") / "llama", torch.float32)


def _tokens() -> torch.Tensor:
    return torch.randint(3, 90, (16, 16), generator=torch.Generator().manual_seed(0))


def _logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(_tokens()).logits.float()
    return logits


def _cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0))


def _quantizers(model: torch.nn.Module) -> dict[str, ActivationQuantizer]:
    return {name: module for name, module in model.named_modules() if isinstance(module, ActivationQuantizer)}


def test_what_was_measured_is_found_again_where_the_last_bit_of_a_sum_decides_between_codes(tmp_path: Path) -> None:
    """Layers that decode at each call sum in another order than those that were measured: here some codes differ."""
    write_tiny_llama(tmp_path / "source")
    nupes_core.quantize(tmp_path / "source", tmp_path / "out", QuantizationConfig(activations=ActivationConfig(8)))
    finalize(tmp_path / "out", metrics=None)
    expected = probe_folder(tmp_path / "out")
    check = verify_artifact(tmp_path / "out", source=tmp_path / "source", expected=expected)
    assert check.forward
    assert check.difference is not None
    assert check.difference < 1e-6
    assert expected.difference(probe(load(tmp_path / "out", dtype=torch.float32))) < 1, "it computes something else"


def test_eight_bits_without_data_from_folder_to_forward_pass(source: Path, tmp_path: Path) -> None:
    config = QuantizationConfig(WeightConfig(8), activations=ActivationConfig(8))
    report = nupes_core.quantize(source, tmp_path / "out", config)
    assert {layer.activation_bits for layer in report.layers if layer.skipped_reason is None} == {8}
    assert {layer.activation_bits for layer in report.layers if layer.skipped_reason} == {None}
    model = load(tmp_path / "out")
    assert len(_quantizers(model)) == 14
    found, reference = _logits(model), _logits(load(source))
    assert _cosine(found, reference) > 0.9995
    for module in model.modules():
        if isinstance(module, QuantizedLayer):
            module.input_quantizer = None
    assert not torch.equal(_logits(model), found)


def test_figures_are_those_of_the_model_that_codes_its_inputs(source: Path, tmp_path: Path) -> None:
    config = QuantizationConfig(WeightConfig(8), activations=ActivationConfig(4))
    nupes_core.quantize(source, tmp_path / "out", config, formats=["nupes", "dense"])
    text = torch.arange(256) % 50
    measured = {
        name: nupes_core.evaluate(tmp_path / "out" / name, text, context=64, baseline=source).kl
        for name in ("nupes", "dense")
    }
    loaded = nupes_core.evaluate(load(tmp_path / "out" / "nupes"), text, context=64, baseline=source).kl
    assert measured["nupes"] == pytest.approx(loaded, rel=1e-3)
    assert measured["nupes"] is not None
    assert measured["dense"] is not None
    assert measured["nupes"] > 10 * measured["dense"], "inputs of 4 bits cost more than weights of 8"


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "gpt_oss", "bert", "t5", "vit"])
def test_every_reported_input_is_coded_in_the_loaded_model_and_sizes_are_as_planned(
    family: str, tmp_path: Path
) -> None:
    source = save(family, tmp_path / "source")
    report = nupes_core.quantize(source, tmp_path / "out", DYNAMIC)
    written = sum(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors"))
    assert written == plan_folder(source, DYNAMIC).artifact_bytes
    model = load(tmp_path / "out")
    _, info = type(model).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    reported = [layer.name for layer in report.layers if layer.activation_bits]
    assert len(_quantizers(model)) == len(reported) > 0
    assert not any("expert" in name for name in reported)


def test_bits_per_weight_are_those_of_the_weights(source: Path, tmp_path: Path) -> None:
    plain = nupes_core.quantize(source, tmp_path / "plain", QUICK)
    coded = nupes_core.quantize(source, tmp_path / "coded", DYNAMIC)
    assert coded.bits_per_weight == plain.bits_per_weight


def test_static_parameters_are_restored_bit_for_bit(source: Path, tmp_path: Path) -> None:
    nupes_core.quantize(source, tmp_path / "out", STATIC, calibration=Samples({"input_ids": _tokens()}))
    stored = load_file(tmp_path / "out/model.safetensors")
    for dtype in (torch.float32, torch.bfloat16):
        model = load(tmp_path / "out", dtype=dtype)
        held = {f"{name}.codes": each.codes for name, each in _quantizers(model).items()}
        assert len(held) == 14
        assert all(torch.equal(codes, stored[name]) for name, codes in held.items())
    assert {each.config.scaling for each in _quantizers(model).values()} == {"static"}
    assert len({tuple(codes.tolist()) for codes in held.values()}) > 7
    model.save_pretrained(tmp_path / "again")
    again = load(tmp_path / "again", dtype=torch.bfloat16)
    assert torch.equal(_logits(again), _logits(model))


def test_a_layer_that_the_data_did_not_reach_gets_dynamic_scales(tmp_path: Path) -> None:
    source = save("bert", tmp_path / "source")
    nupes_core.quantize(source, tmp_path / "out", STATIC, calibration=Samples({"input_ids": _tokens()}))
    scaling = {name: each.config.scaling for name, each in _quantizers(load(tmp_path / "out")).items()}
    assert scaling.pop("pooler.dense.input_quantizer") == "dynamic"
    assert set(scaling.values()) == {"static"}


def test_a_dense_artifact_holds_weights_alone_and_says_so(source: Path, tmp_path: Path) -> None:
    nupes_core.quantize(source, tmp_path / "coded", DYNAMIC, formats=("nupes", "dense"))
    nupes_core.quantize(source, tmp_path / "plain", QUICK, formats=("dense",))
    coded, plain = (load_file(tmp_path / each / "model.safetensors") for each in ("coded/dense", "plain"))
    assert sorted(coded) == sorted(plain)
    assert all(torch.equal(coded[name], plain[name]) for name in plain)
    assert "stay float" in (tmp_path / "coded/dense/README.md").read_text()
    assert "8 bits" in (tmp_path / "coded/nupes/README.md").read_text()


def _stored(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return apply


def _settings(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        change(config["quantization_config"])
        (folder / "config.json").write_text(json.dumps(config))

    return apply


_HOSTILE: dict[str, Callable[[Path], None]] = {
    "another shape": _stored(lambda t: t.update({CODES: torch.zeros(9, dtype=torch.int16)})),
    "no codes": _stored(lambda t: t.pop(CODES) is None),
    "an exponent out of range": _stored(lambda t: t[CODES].__setitem__(3, 999)),
    "an unknown kind": _stored(lambda t: t[CODES].__setitem__(1, -1)),
    "bits out of range": _settings(lambda q: q["tensors"][f"{LAYER}.weight"].update(activation_bits=64)),
    "an unknown scaling": _settings(lambda q: q["tensors"][f"{LAYER}.weight"].update(activation_scaling="none")),
    "an unknown grid": _settings(lambda q: q["activations"].update(grid="cubic")),
    "an unknown setting": _settings(lambda q: q["activations"].update(command="rm")),
    "no settings": _settings(lambda q: q.update(activations=[1])),
}


@pytest.mark.parametrize("change", _HOSTILE.values(), ids=_HOSTILE)
def test_what_no_job_wrote_is_refused(change: Callable[[Path], None], source: Path, tmp_path: Path) -> None:
    nupes_core.quantize(source, tmp_path / "out", DYNAMIC)
    change(tmp_path / "out")
    with pytest.raises((LoadCheckError, UnsafeFileError)):
        load(tmp_path / "out")


def test_the_plug_in_alone_restores_coded_inputs(source: Path, tmp_path: Path) -> None:
    nupes_core.quantize(source, tmp_path / "out", DYNAMIC)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(_logits(model), _logits(load(tmp_path / "out")))
    assert not _quantizers(model.dequantize())
