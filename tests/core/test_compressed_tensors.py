"""Artifacts of format `compressed-tensors`, loaded by transformers as its users do."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import nupes_core
from nupes_core import quantize, quantize_shard
from nupes_core.check import verify_artifact
from nupes_core.config import (
    ActivationConfig,
    CalibrationConfig,
    LayerOverride,
    LayerSelection,
    QuantizationConfig,
    TrainingConfig,
    WeightConfig,
)
from nupes_core.errors import InvalidConfigError, LoadCheckError, NoQuantizableLayersError
from nupes_core.evaluation import evaluate
from nupes_core.manifest import hash_file
from nupes_core.plan import plan_folder
from nupes_core.probe import probe_folder
from nupes_core.quantizer.sizes import model_bits_per_weight
from nupes_core.report import Metric, Progress
from tests.core.test_sharded import contents, split
from tests.core.tiny import VOCABULARY, save
from tests.models import llama

NAME = "compressed-tensors"
TOKENS = torch.arange(40).view(2, 20) * 7 % VOCABULARY


def settings(bits: int = 4, group_size: int = 16, **layers: Any) -> QuantizationConfig:
    return QuantizationConfig(WeightConfig(bits=bits, group_size=group_size), LayerSelection(**layers))


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(TOKENS).logits
    return found


def unpacked(artifact: Path, bits: dict[str, int] | int) -> dict[str, torch.Tensor]:
    """Every stored weight decoded by the words of the format's specification, nothing of ours: code times scale."""
    stored = load_file(artifact / "model.safetensors")
    found = {}
    for name in (each.removesuffix("_packed") for each in stored if each.endswith("_packed")):
        width = bits if isinstance(bits, int) else next(b for part, b in bits.items() if part in name)
        words, scale = stored[f"{name}_packed"], stored[f"{name}_scale"]
        codes = torch.stack([(words >> (width * at)) & ((1 << width) - 1) for at in range(32 // width)], -1)
        k = codes.flatten(1) - (1 << (width - 1))
        assert list(k.shape) == stored[f"{name}_shape"].tolist()
        found[name] = (k.view(*scale.shape, -1) * scale[..., None]).flatten(1)
    return found


@pytest.mark.parametrize(
    ("bits", "group_size", "dtype"), [(4, 16, torch.bfloat16), (8, 16, torch.float32), (4, -1, torch.float16)]
)
def test_the_consumer_computes_what_the_stored_integers_and_signed_scales_say(
    bits: int, group_size: int, dtype: torch.dtype, tmp_path: Path
) -> None:
    src = save("llama", tmp_path / "src", dtype)
    report = quantize(src, tmp_path / "out", settings(bits, group_size), formats=[NAME])
    consumer = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ours = AutoModelForCausalLM.from_pretrained(src)
    original = logits(ours)
    weights = unpacked(tmp_path / "out", bits)
    assert len(weights) == 14 == sum(layer.bits is not None for layer in report.layers)
    assert any(bool((scale < 0).any()) for scale in load_file(tmp_path / "out/model.safetensors").values())
    for name, weight in weights.items():
        ours.get_parameter(name).data = weight
    first = logits(consumer)
    assert torch.equal(first, logits(ours))
    assert torch.equal(first, logits(consumer)), "the second pass as the first"
    assert 0 < float((first - original).float().norm() / original.float().norm()) < (0.2 if bits == 4 else 0.02)


def test_our_own_loader_evaluation_and_check_take_it(tmp_path: Path) -> None:
    src = save("qwen2", tmp_path / "src")
    quantize(src, tmp_path / "out", settings(), formats=[NAME])
    loaded = nupes_core.load(tmp_path / "out", dtype=torch.float32)
    assert torch.equal(
        logits(loaded), logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32))
    )
    assert 0 < kl(tmp_path / "out", src) < 0.01
    check = verify_artifact(tmp_path / "out", source=src, expected=probe_folder(tmp_path / "out"))
    assert (check.matrices, check.compared, check.forward, check.difference) == (14, 14, True, 0.0)


def test_the_check_finds_a_changed_scale(tmp_path: Path) -> None:
    src = save("llama", tmp_path / "src")
    quantize(src, tmp_path / "out", settings(), formats=[NAME])
    path = tmp_path / "out/model.safetensors"
    content = bytearray(path.read_bytes())
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    start, end = header["model.layers.0.mlp.up_proj.weight_scale"]["data_offsets"]
    data = len(content) - max(each["data_offsets"][1] for key, each in header.items() if key != "__metadata__")
    content[data + start : data + end] = bytes(end - start)
    path.write_bytes(content)
    sums = (tmp_path / "out/SHA256SUMS").read_text()
    digest = hash_file(path)["sha256"]
    lines = [f"{digest}  {path.name}" if line.endswith(path.name) else line for line in sums.splitlines()]
    (tmp_path / "out/SHA256SUMS").write_text("\n".join(lines) + "\n")
    with pytest.raises(LoadCheckError, match=r"up_proj decodes with a mean squared error"):
        verify_artifact(tmp_path / "out", source=src)


def test_its_codes_are_its_own_beside_a_power_grid_and_each_artifact_tells_of_itself(tmp_path: Path) -> None:
    src = save("llama", tmp_path / "src")
    steps: list[Progress] = []
    formats = ["nupes", NAME, "dense"]
    report = quantize(src, tmp_path / "both", settings(), formats=formats, progress=steps.append)
    quantize(src, tmp_path / "alone", settings(), formats=[NAME])
    assert contents(tmp_path / "both" / NAME) == contents(tmp_path / "alone")
    exponents = {
        name: {each["exponent"] for each in manifest(tmp_path / "both" / name)["layers"] if each["bits"]}
        for name in formats
    }
    assert exponents[NAME] == {1.0}
    assert exponents["nupes"] == exponents["dense"]
    assert 1.0 not in exponents["nupes"]
    bits = {name: manifest(tmp_path / "both" / name)["totals"]["bits_per_weight"] for name in formats}
    assert bits["nupes"] == report.bits_per_weight == report.formats[0].bits_per_weight
    assert bits[NAME] == report.formats[1].bits_per_weight == model_bits_per_weight(tmp_path / "both" / NAME)
    assert bits[NAME] > 4 + 16 / 16
    assert [each.bytes_after for each in report.formats] == [
        (tmp_path / "both" / name / "model.safetensors").stat().st_size for name in formats
    ]
    assert_progress_never_goes_back(steps)
    assert "uniform grid" in (tmp_path / "both" / NAME / "README.md").read_text()


def test_layers_of_several_widths_are_groups_that_the_consumer_tells_apart(tmp_path: Path) -> None:
    src = save("llama", tmp_path / "src")
    config = settings(
        4, exclude=("lm_head", "gate_proj"), overrides=(LayerOverride("down_proj", bits=8, group_size=48),)
    )
    report = quantize(src, tmp_path / "out", config, formats=[NAME])
    assert {layer.name: layer.bits for layer in report.layers}["model.layers.0.mlp.down_proj"] == 8
    weights = unpacked(tmp_path / "out", {"down_proj": 8, "": 4})
    assert len(weights) == 12
    ours = AutoModelForCausalLM.from_pretrained(src)
    for name, weight in weights.items():
        ours.get_parameter(name).data = weight
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), logits(ours))


def test_a_tied_head_is_left_alone(tmp_path: Path) -> None:
    src = save("llama_tied", tmp_path / "src")
    quantize(src, tmp_path / "out", settings(), formats=[NAME])
    assert verify_artifact(tmp_path / "out", source=src).forward


def test_what_it_can_not_hold_is_said_before_any_work(tmp_path: Path) -> None:
    src = save("llama", tmp_path / "src")
    wishes = {
        "4 or 8 bits": settings(bits=3),
        "asks for 5": settings(overrides=(LayerOverride("mlp", bits=5),)),
        "activations": replace(settings(), activations=ActivationConfig()),
    }
    for said, config in wishes.items():
        with pytest.raises(InvalidConfigError, match=said) as refused:
            plan_folder(src, config, formats=["nupes", NAME])
        assert refused.value.hint


def test_layers_it_can_not_hold_are_left_alone_with_the_reason(tmp_path: Path) -> None:
    src = save("llama", tmp_path / "src")
    plan = plan_folder(src, settings(group_size=32, embeddings=True), formats=[NAME])
    skipped = {each.module: each.skipped_reason or "" for each in plan.skipped}
    assert "48 columns are no multiple of 32" in skipped["model.layers.0.mlp.down_proj"]
    assert "linear layers alone" in skipped["model.embed_tokens"]
    assert plan.quantized


def test_a_model_of_conv1d_layers_has_nothing_for_it(tmp_path: Path) -> None:
    src = save("gpt2", tmp_path / "src")
    with pytest.raises(NoQuantizableLayersError, match=rf"for {NAME}: .*Conv1D"):
        quantize(src, tmp_path / "out", settings(), formats=["nupes", NAME])
    assert not (tmp_path / "out").exists()


def test_files_quantized_one_by_one_give_the_artifacts_of_one_run(tmp_path: Path) -> None:
    model = llama(tmp_path / "model", shard_bytes=90_000)
    formats = [NAME, "nupes"]
    quantize(model, tmp_path / "whole", settings(), formats=formats)
    done = []
    for part in split(model, tmp_path / "in"):
        done.append(tmp_path / "done" / part.name)
        steps: list[Progress] = []
        quantize_shard(part, done[-1], settings(), formats=formats, progress=steps.append)
        assert_progress_never_goes_back(steps)
    joined = quantize(model, tmp_path / "joined", settings(), formats=formats, finished=done, workdir=tmp_path / "work")
    assert contents(tmp_path / "joined") == contents(tmp_path / "whole")
    assert not list((tmp_path / "work").rglob("*.safetensors")), "nothing was quantized again"
    assert [each.format for each in joined.formats] == formats


def test_a_second_attempt_takes_the_matrices_of_every_format_as_they_are(tmp_path: Path) -> None:
    src = save("llama", tmp_path / "src")
    formats = ["nupes", NAME]
    quantize(src, tmp_path / "first", settings(), formats=formats, workdir=tmp_path / "work")
    pieces = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.safetensors")}
    assert len(pieces) == 28
    quantize(src, tmp_path / "second", settings(), formats=formats, workdir=tmp_path / "work")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.safetensors")} == pieces
    assert contents(tmp_path / "second") == contents(tmp_path / "first")


def test_its_codes_are_learnt_on_data_and_their_curves_have_names_of_their_own(tmp_path: Path) -> None:
    src = save("llama", tmp_path / "src", torch.float32)
    learning = replace(
        settings(),
        optimize="data_driven",
        training=TrainingConfig(steps=8, learning_rate=0.01),
        calibration=CalibrationConfig(samples=16, length=16),
    )
    tokens = torch.randint(3, VOCABULARY, (16, 16), generator=torch.Generator().manual_seed(0))
    metrics: list[Metric] = []
    steps: list[Progress] = []
    quantize(
        src,
        tmp_path / "out",
        learning,
        calibration=tokens,
        formats=["nupes", NAME],
        on_metric=metrics.append,
        progress=steps.append,
    )
    assert_progress_never_goes_back(steps)
    names = {metric.series for metric in metrics}
    assert {f"{name} ({NAME})" for name in names if NAME not in name} == {name for name in names if NAME in name}
    points = defaultdict(list)
    for metric in metrics:
        points[metric.series].append(metric.step)
    assert all(steps == sorted(set(steps)) for steps in points.values())
    quantize(src, tmp_path / "free", settings(), formats=[NAME])
    assert kl(tmp_path / "out" / NAME, src) < kl(tmp_path / "free", src)
    assert {each["exponent"] for each in manifest(tmp_path / "out" / NAME)["layers"] if each["bits"]} == {1.0}


def assert_progress_never_goes_back(steps: list[Progress]) -> None:
    phases = defaultdict(list)
    for step in steps:
        phases[step.phase].append(step)
    assert list(dict.fromkeys(step.phase for step in steps)) == [
        phase
        for index, phase in enumerate(step.phase for step in steps)
        if index == 0 or steps[index - 1].phase != phase
    ], "no phase comes twice"
    for phase in phases.values():
        fractions = [step.current / step.total for step in phase]
        assert fractions == sorted(fractions)
        assert fractions[-1] == 1


def kl(artifact: Path, src: Path) -> float:
    tokens = torch.randint(3, VOCABULARY, (513,), generator=torch.Generator().manual_seed(1))
    measured = evaluate(artifact, tokens, baseline=src, context=32)
    assert measured.kl is not None
    return measured.kl


def manifest(artifact: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((artifact / "manifest.json").read_text())
    return content
