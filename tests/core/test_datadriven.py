"""Data-driven NUPES on model folders of many families: what it gains, and that its stages and attempts are sound."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import nupes_core
from nupes_core.config import (
    ActivationConfig,
    CalibrationConfig,
    ExponentConfig,
    LayerSelection,
    QuantizationConfig,
    TrainingConfig,
    WeightConfig,
)
from nupes_core.errors import CalibrationError, InvalidConfigError, NumericsError, UnsupportedArchitectureError
from nupes_core.report import Metric, Progress, Report
from tests.core.tiny import VOCABULARY, save

CONFIG = QuantizationConfig(
    WeightConfig(bits=3, group_size=16),
    LayerSelection(exclude=("lm_head",)),
    optimize="data_driven",
    training=TrainingConfig(steps=8, learning_rate=0.01, batch_size=4),
    calibration=CalibrationConfig(samples=16, length=16),
)
TOKENS = torch.randint(3, VOCABULARY, (16, 16), generator=torch.Generator().manual_seed(0))
PIXELS = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))

DECODERS = ["llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3", "phi", "phi3", "opt", "gpt2", "gpt_neox"]
FAMILIES: dict[str, torch.Tensor] = {**dict.fromkeys(DECODERS, TOKENS), "bert": TOKENS, "vit": PIXELS}


def run(
    src: Path, dst: Path, config: QuantizationConfig = CONFIG, **given: Any
) -> tuple[Report, dict[str, list[float]]]:
    """Quantize, and return the report and the curves by series."""
    curves: dict[str, list[float]] = defaultdict(list)

    def take(point: Metric) -> None:
        curves[point.series].append(point.value)

    given.setdefault("calibration", TOKENS)
    report = nupes_core.quantize(src, dst, config, on_metric=take, **given)
    return report, dict(curves)


def outputs(path: Path, inputs: torch.Tensor) -> torch.Tensor:
    model = nupes_core.load(path, dtype=torch.float32)
    with torch.no_grad():
        found = model(inputs)
    return (found.logits if "logits" in found else found.last_hidden_state).float()


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_of_every_family_are_found_trained_and_loaded(family: str, tmp_path: Path) -> None:
    src, inputs = save(family, tmp_path / "src", torch.float32), FAMILIES[family]
    report, curves = run(src, tmp_path / "driven", calibration=inputs)
    nupes_core.quantize(src, tmp_path / "free", replace(CONFIG, optimize="data_free"))
    exact = outputs(src, inputs)
    driven, free = (float((outputs(tmp_path / name, inputs) - exact).square().mean()) for name in ("driven", "free"))
    assert driven < 0.9 * free
    trained = [layer for layer in report.layers if layer.codes_moved is not None]
    blocks = {name.partition("/")[2] for name in curves if name.startswith("held_out/")}
    assert len(blocks) == 2
    in_blocks = [layer.name for layer in report.layers if layer.bits and re.search(r"\.[01]\.", layer.name)]
    assert [layer.name for layer in trained] == in_blocks
    assert len(trained) >= 8
    assert all(layer.histogram and sum(layer.histogram) > 0 for layer in trained)


def test_no_stage_makes_the_held_out_loss_worse(tmp_path: Path) -> None:
    src = save("llama", tmp_path / "src")
    _, curves = run(src, tmp_path / "out", replace(CONFIG, training=replace(CONFIG.training, tweak_norms=True)))
    for block in ("model.layers.0", "model.layers.1"):
        starts = [
            curves[f"start_{name}/{block}"][0] for name in ("data_free", "importance", "error_feedback", "descent")
        ]
        held_out, norms = curves[f"held_out/{block}"], curves[f"norms_held_out/{block}"]
        assert held_out[0] == pytest.approx(min(starts), rel=1e-4)
        assert norms[0] == pytest.approx(min(held_out), rel=1e-4)
        assert min(norms) <= norms[0]
        assert len(curves[f"loss/{block}"]) == len(curves[f"norms_loss/{block}"]) == CONFIG.training.steps


def test_trained_norms_reach_the_artifact_in_both_formats(tmp_path: Path) -> None:
    src = save("llama", tmp_path / "src", torch.float32)
    config = replace(CONFIG, training=replace(CONFIG.training, tweak_norms=True))
    run(src, tmp_path / "out", config, formats=("nupes", "dense"))
    before = nupes_core.load(src).model.layers[1].input_layernorm.weight
    after = [
        nupes_core.load(tmp_path / "out" / name).model.layers[1].input_layernorm.weight for name in ("nupes", "dense")
    ]
    assert torch.equal(after[0], after[1])
    assert not torch.equal(after[0], before)


@pytest.mark.parametrize(
    "off",
    [
        {"learn_codes": False},
        {"learn_exponent": False},
        {"learn_scales": False},
        {"error_feedback": False},
        {"learn_codes": False, "learn_exponent": False, "learn_scales": False},
    ],
)
def test_stages_are_switched_off_one_by_one(off: dict[str, bool], tmp_path: Path) -> None:
    src = save("llama", tmp_path / "src")
    report, curves = run(src, tmp_path / "out", replace(CONFIG, training=replace(CONFIG.training, **off)))
    moved = [layer.codes_moved for layer in report.layers if layer.codes_moved is not None]
    assert any(moved) == off.get("learn_codes", True)
    assert ("start_error_feedback/model.layers.0" in curves) == off.get("error_feedback", True)
    assert ("loss/model.layers.0" in curves) == (len(off) < 3)


def test_a_fixed_exponent_is_not_learnt(tmp_path: Path) -> None:
    src = save("llama", tmp_path / "src")
    weights = replace(CONFIG.weights, exponent=ExponentConfig("fixed", "layer", 0.7))
    report, curves = run(src, tmp_path / "out", replace(CONFIG, weights=weights))
    assert {layer.exponent for layer in report.layers if layer.bits} == {0.7}
    assert "loss/model.layers.0" in curves


@pytest.mark.parametrize("scope", ["global", "layer", "row", "group"])
@pytest.mark.parametrize("bits", [2, 4])
def test_every_exponent_scope_is_trained(scope: Any, bits: int, tmp_path: Path) -> None:
    src = save("llama", tmp_path / "src")
    weights = WeightConfig(bits=bits, group_size=12, exponent=ExponentConfig(scope=scope))
    config = replace(CONFIG, weights=weights)
    _, curves = run(src, tmp_path / "driven", config)
    nupes_core.quantize(src, tmp_path / "free", replace(config, optimize="data_free"))
    assert min(curves["held_out/model.layers.0"]) < 0.95 * curves["start_data_free/model.layers.0"][0]
    exact = outputs(src, TOKENS)
    driven, free = (float((outputs(tmp_path / name, TOKENS) - exact).square().mean()) for name in ("driven", "free"))
    assert driven < free


def test_same_data_seed_and_config_give_the_same_bytes(tmp_path: Path) -> None:
    src = save("llama", tmp_path / "src")
    for name in ("a", "b"):
        run(src, tmp_path / name)
    assert (tmp_path / "a" / "SHA256SUMS").read_text() == (tmp_path / "b" / "SHA256SUMS").read_text()
    run(src, tmp_path / "c", replace(CONFIG, seed=1))
    assert (tmp_path / "a" / "model.safetensors").read_bytes() != (tmp_path / "c" / "model.safetensors").read_bytes()


class Stopped(Exception):  # noqa: N818
    pass


def test_a_second_attempt_resumes_at_the_block_and_ends_in_the_same_bytes(tmp_path: Path) -> None:
    src = save("llama", tmp_path / "src")
    run(src, tmp_path / "whole")

    def stop_in_second_block(progress: Progress) -> None:
        if progress.phase == "calibrating" and progress.message.endswith("layers.1"):
            raise Stopped

    with pytest.raises(Stopped):
        run(src, tmp_path / "resumed", workdir=tmp_path / "work", progress=stop_in_second_block)
    assert not (tmp_path / "resumed").exists()
    (committed,) = (tmp_path / "work").rglob("*.safetensors")
    touched = committed.stat().st_mtime_ns
    _, curves = run(src, tmp_path / "resumed", workdir=tmp_path / "work")
    assert committed.stat().st_mtime_ns == touched
    assert len(curves["loss/model.layers.0"]) == CONFIG.training.steps
    assert (tmp_path / "whole" / "SHA256SUMS").read_text() == (tmp_path / "resumed" / "SHA256SUMS").read_text()


def test_other_data_does_not_reuse_committed_blocks(tmp_path: Path) -> None:
    src = save("llama", tmp_path / "src")
    run(src, tmp_path / "a", workdir=tmp_path / "work")
    run(src, tmp_path / "b", workdir=tmp_path / "work", calibration=TOKENS.flip(1))
    assert (tmp_path / "a" / "model.safetensors").read_bytes() != (tmp_path / "b" / "model.safetensors").read_bytes()


def test_padding_is_not_learnt_from(tmp_path: Path) -> None:
    src = save("bert", tmp_path / "src")
    mask = torch.ones_like(TOKENS)
    mask[:, 8:] = 0
    noise = torch.where(mask.bool(), TOKENS, 5)
    for name, tokens in (("a", TOKENS), ("b", noise)):
        samples = nupes_core.Samples({"input_ids": tokens, "attention_mask": mask})
        run(src, tmp_path / name, calibration=samples)
    exact = outputs(src, TOKENS)
    assert not torch.equal(exact, outputs(src, noise))
    reports = [outputs(tmp_path / name, TOKENS[:, :8]) for name in ("a", "b")]
    assert torch.allclose(reports[0], reports[1], atol=1e-4)


def test_a_model_without_a_chain_of_blocks_is_refused_before_any_work(tmp_path: Path) -> None:
    src = save("t5", tmp_path / "src")
    samples = nupes_core.Samples({"input_ids": TOKENS, "decoder_input_ids": TOKENS})
    with pytest.raises(UnsupportedArchitectureError, match="block"):
        run(src, tmp_path / "out", calibration=samples)
    assert not (tmp_path / "out").exists()


def test_experts_are_quantized_without_data_and_the_rest_of_the_block_learns(tmp_path: Path) -> None:
    src = save("mixtral", tmp_path / "src")
    report, _ = run(src, tmp_path / "out")
    moved = {layer.name: layer.codes_moved is not None for layer in report.layers if layer.bits}
    assert all(trained == ("self_attn" in name) for name, trained in moved.items())
    assert {"self_attn", "mlp"} <= {part for name in moved for part in name.split(".")} | {"mlp"}
    assert torch.isfinite(outputs(tmp_path / "out", TOKENS)).all()


def test_data_for_a_run_without_data_is_refused(tmp_path: Path) -> None:
    src = save("llama", tmp_path / "src")
    with pytest.raises(InvalidConfigError, match="data_free"):
        run(src, tmp_path / "out", replace(CONFIG, optimize="data_free"))


def test_too_little_data_is_refused_before_any_work(tmp_path: Path) -> None:
    src = save("llama", tmp_path / "src")
    with pytest.raises(CalibrationError):
        run(src, tmp_path / "out", calibration=TOKENS[:1, :10])
    assert not (tmp_path / "out").exists()


def test_a_model_that_overflows_names_the_block(tmp_path: Path) -> None:
    model = nupes_core.load(save("llama", tmp_path / "src", torch.float32))
    model.model.layers[1].mlp.down_proj.weight.data.fill_(3e38)
    model.save_pretrained(tmp_path / "broken")
    with pytest.raises(NumericsError, match=r"model\.layers\.1"):
        run(tmp_path / "broken", tmp_path / "out")


@pytest.mark.parametrize("optimize", ["data_free", "data_driven"])
def test_outlier_channels_are_smoothed_block_by_block_and_attempts_agree(optimize: Any, tmp_path: Path) -> None:
    model = nupes_core.load(save("llama", tmp_path / "plain", torch.float32))
    for block in model.model.layers:
        block.input_layernorm.weight.data[3] = 40.0
        block.post_attention_layernorm.weight.data[5] = 30.0
    model.save_pretrained(tmp_path / "src")
    exact = outputs(tmp_path / "src", TOKENS)
    config = replace(CONFIG, weights=WeightConfig(4, 16), optimize=optimize)
    errors = {}
    for smooth in (False, True):
        activations = ActivationConfig(4, scaling="static", smooth=smooth)
        out, wished = tmp_path / f"out-{smooth}", replace(config, activations=activations)
        run(tmp_path / "src", out, wished, workdir=tmp_path / "work")
        run(tmp_path / "src", tmp_path / f"again-{smooth}", wished, workdir=tmp_path / "work")
        assert (out / "SHA256SUMS").read_text() == (tmp_path / f"again-{smooth}" / "SHA256SUMS").read_text()
        errors[smooth] = float((outputs(out, TOKENS) - exact).square().mean())
    assert errors[True] < 0.8 * errors[False]


def test_without_data_a_language_model_learns_from_its_own_text(tmp_path: Path) -> None:
    src = save("llama", tmp_path / "src")
    report, _ = run(src, tmp_path / "out", calibration=None)
    assert any(layer.codes_moved for layer in report.layers)
