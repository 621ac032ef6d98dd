from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from nupes_core.config import ExponentConfig, LayerSelection, QuantizationConfig, WeightConfig
from nupes_core.errors import (
    InvalidConfigError,
    NoQuantizableLayersError,
    NumericsError,
    UnsafeFileError,
)
from nupes_core.module import quantize_model
from nupes_core.pipeline import quantize
from nupes_core.plan import plan_folder
from nupes_core.quantizer.weight import QuantizedWeight
from nupes_core.report import LayerReport, Progress, Report
from nupes_core.storage import WeightFormat, tensor_specs
from tests import models
from tests.models import checkpoint, gaussian

CONFIG = QuantizationConfig(weights=WeightConfig(group_size=16))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t for path in sorted(folder.glob("*.safetensors")) for name, t in load_file(path).items()}


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def layer(report: Report, name: str) -> LayerReport:
    return next(each for each in report.layers if each.name == name)


def decoded(folder: Path, name: str, index: int | None = None) -> torch.Tensor:
    """Decode a stored matrix by nothing but what formats/README.md says."""
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    entry = config["tensors"][name]
    fmt = WeightFormat(**config["formats"][entry["format"]])
    stored = weights(folder)
    parts = {suffix: stored[f"{name}_{suffix}"] for suffix in tensor_specs(fmt)}
    matrix = QuantizedWeight(fmt, {s: t if index is None else t[index] for s, t in parts.items()}).dequantize()
    return matrix.t() if entry.get("transposed") else matrix


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0))


@pytest.mark.parametrize(
    "build", [models.llama, models.gpt2, models.fused_experts], ids=["llama", "gpt2", "fused_experts"]
)
def test_the_written_files_have_exactly_the_planned_size_in_every_format(tmp_path: Path, build: object) -> None:
    src = build(tmp_path / "src")  # type: ignore[operator]
    for fmt in ("nupes", "dense"):
        dst = tmp_path / fmt
        report = quantize(src, dst, CONFIG, formats=(fmt,))
        written = sum(path.stat().st_size for path in dst.glob("*.safetensors"))
        assert written == plan_folder(src, CONFIG, formats=(fmt,)).artifact_bytes == report.bytes_after


def test_dense_and_native_hold_the_same_values_and_leave_the_rest_untouched(tmp_path: Path) -> None:
    src = models.llama(tmp_path / "src")
    report = quantize(src, tmp_path / "out", CONFIG, formats=("nupes", "dense"))
    before, native, dense = weights(src), weights(tmp_path / "out/nupes"), weights(tmp_path / "out/dense")
    name = "model.layers.1.mlp.down_proj.weight"
    assert name not in native
    assert torch.equal(decoded(tmp_path / "out/nupes", name), dense[name])
    assert 18 < layer(report, name.removesuffix(".weight")).sqnr_db < 25  # type: ignore[operator]
    assert not torch.equal(dense[name], before[name])
    assert torch.equal(native["model.norm.weight"], before["model.norm.weight"])
    assert torch.equal(dense["lm_head.weight"], before["lm_head.weight"])
    assert [(each.format, round(each.bits_per_weight)) for each in report.formats] == [("nupes", 5), ("dense", 32)]


def test_a_dense_artifact_loads_in_transformers_without_us(tmp_path: Path) -> None:
    quantize(models.gpt2(tmp_path / "src"), tmp_path / "out", CONFIG, formats=("dense",))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    original = AutoModelForCausalLM.from_pretrained(tmp_path / "src")
    ids = torch.arange(20)[None]
    with torch.no_grad():
        near = torch.nn.functional.cosine_similarity(model(ids).logits, original(ids).logits, dim=-1)
    assert near.min() > 0.98


def test_gpt2_weights_are_grouped_along_their_inputs(tmp_path: Path) -> None:
    src = models.gpt2(tmp_path / "src")
    quantize(src, tmp_path / "out", CONFIG)
    name = "transformer.h.0.attn.c_attn.weight"
    original = weights(src)[name]
    assert original.shape == (32, 96)
    assert decoded(tmp_path / "out", name).shape == original.shape
    assert (
        torch.nn.functional.cosine_similarity(decoded(tmp_path / "out", name).flatten(), original.flatten(), dim=0)
        > 0.99
    )


def test_each_expert_is_quantized_reported_and_stored(tmp_path: Path) -> None:
    src = models.fused_experts(tmp_path / "src")
    report = quantize(src, tmp_path / "out", CONFIG)
    name = "model.layers.0.mlp.experts.down_proj"
    stored = weights(tmp_path / "out")
    assert stored[f"{name}_codes"].shape[0] == 4
    original = weights(src)[name].float()
    for i in range(4):
        assert cosine(decoded(tmp_path / "out", name, i), original[i]) > 0.99
        assert layer(report, f"{name}[{i}]").shape == (48, 32)
    bytes_after = sum(each.bytes_after for each in report.layers if each.bits)
    assert report.bits_per_weight == pytest.approx(8 * bytes_after / report.quantized_params)


def test_shards_stay_shards_with_a_true_index(tmp_path: Path) -> None:
    src = models.llama(tmp_path / "src", shard_bytes=60_000, dtype=torch.bfloat16)
    quantize(src, tmp_path / "out", CONFIG)
    names = {path.name for path in src.glob("*.safetensors")}
    assert len(names) > 1
    assert {path.name for path in (tmp_path / "out").glob("*.safetensors")} == names
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    for file in names:
        held = set(load_file(tmp_path / "out" / file))
        assert held == {name for name, owner in index["weight_map"].items() if owner == file}
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in weights(tmp_path / "out").values())


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    quantize(models.llama(tmp_path / "src", tied=True), tmp_path / "out", CONFIG, formats=("dense",))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    src = models.llama(tmp_path / "src", dtype=torch.float16)
    quantize(src, tmp_path / "a", CONFIG)
    quantize(src, tmp_path / "b", CONFIG)
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_a_second_attempt_takes_up_committed_work(tmp_path: Path) -> None:
    src = models.llama(tmp_path / "src")
    seen: list[str] = []

    def stop_late(step: Progress) -> None:
        seen.append(step.message)
        if step.message == "model.layers.1.mlp.up_proj":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(src, tmp_path / "out", CONFIG, progress=stop_late, workdir=tmp_path / "work")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["src", "work"]
    pieces = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.safetensors")}
    assert pieces
    quantize(src, tmp_path / "out", CONFIG, workdir=tmp_path / "work")
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in pieces.items())
    assert len(list((tmp_path / "work").rglob("*.safetensors"))) == 14
    quantize(src, tmp_path / "fresh", CONFIG)
    assert files(tmp_path / "out") == files(tmp_path / "fresh")


def test_committed_work_is_what_is_used_and_damaged_work_is_done_again(tmp_path: Path) -> None:
    src = checkpoint(tmp_path / "src", {"a.weight": gaussian(32, 32)})
    quantize(src, tmp_path / "first", CONFIG, workdir=tmp_path / "work")
    (piece,) = (tmp_path / "work").rglob("*.safetensors")
    whole = piece.read_bytes()
    piece.write_bytes(whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:])
    quantize(src, tmp_path / "changed", CONFIG, workdir=tmp_path / "work")
    assert files(tmp_path / "changed")["model.safetensors"] != files(tmp_path / "first")["model.safetensors"]
    piece.write_bytes(whole[:-1])
    quantize(src, tmp_path / "again", CONFIG, workdir=tmp_path / "work")
    assert files(tmp_path / "again") == files(tmp_path / "first")
    assert piece.read_bytes() == whole


def test_other_settings_do_not_share_committed_work(tmp_path: Path) -> None:
    src = checkpoint(tmp_path / "src", {"a.weight": gaussian(32, 32)})
    for bits in (3, 4):
        quantize(src, tmp_path / f"{bits}", QuantizationConfig(weights=WeightConfig(bits)), workdir=tmp_path / "work")
    assert len(list((tmp_path / "work").rglob("*.safetensors"))) == 2


def test_a_global_exponent_is_one_for_the_model(tmp_path: Path) -> None:
    wide, narrow = gaussian(64, 64), gaussian(64, 64, seed=1) ** 3
    src = checkpoint(tmp_path / "src", {"a.weight": wide, "b.weight": narrow})

    def exponents(scope: str) -> set[float | None]:
        weights = WeightConfig(group_size=32, exponent=ExponentConfig(scope=scope))  # type: ignore[arg-type]
        report = quantize(src, tmp_path / scope, QuantizationConfig(weights=weights))
        return {each.exponent for each in report.layers}

    (shared,) = exponents("global")
    own = exponents("layer")
    assert len(own) == 2
    assert min(own) <= shared <= max(own)  # type: ignore[type-var, operator]

    modules = nn.ModuleDict({name: nn.Linear(64, 64, bias=False) for name in "ab"})
    modules.load_state_dict({"a.weight": wide, "b.weight": narrow})
    config = QuantizationConfig(weights=WeightConfig(group_size=32, exponent=ExponentConfig(scope="global")))
    in_memory = quantize_model(modules, config)
    assert [layer.exponent for layer in in_memory.layers] == pytest.approx([shared] * 2)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["l.q_proj.weight", "l.norm.weight"])
def test_broken_numbers_are_an_error_that_names_the_tensor(tmp_path: Path, value: float, name: str) -> None:
    tensors = {"l.q_proj.weight": gaussian(32, 32), "l.norm.weight": gaussian(32)}
    tensors[name].view(-1)[5] = value
    src = checkpoint(tmp_path / "src", tensors)
    with pytest.raises(NumericsError, match=name):
        quantize(src, tmp_path / "out", CONFIG)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["src"]


def test_infinities_in_buffers_and_tensors_of_other_kinds_pass_through(tmp_path: Path) -> None:
    kept = {
        "attn.mask": torch.full((4, 4), float("-inf")),
        "fp8.weight": gaussian(8, 8).to(torch.float8_e4m3fn),
        "ids": torch.arange(3),
        "conv.weight": gaussian(2, 2, 3, 3, 3),
    }
    src = checkpoint(tmp_path / "src", {"a.weight": gaussian(32, 32), **kept})
    report = quantize(src, tmp_path / "out", CONFIG)
    after = weights(tmp_path / "out")
    assert all(torch.equal(after[name].view(torch.uint8), kept[name].view(torch.uint8)) for name in kept)
    assert "F8_E4M3" in (layer(report, "fp8").skipped_reason or "")


def test_nothing_to_quantize_says_why(tmp_path: Path) -> None:
    src = models.llama(tmp_path / "src")
    everything = replace(CONFIG, layers=LayerSelection(exclude=(".",)))
    with pytest.raises(NoQuantizableLayersError, match="excluded by"):
        quantize(src, tmp_path / "out", everything)


def test_a_target_in_use_is_refused_and_not_touched(tmp_path: Path) -> None:
    src = checkpoint(tmp_path / "src", {"a.weight": gaussian(32, 32)})
    (tmp_path / "out").mkdir()
    quantize(src, tmp_path / "out", CONFIG)
    before = files(tmp_path / "out")
    with pytest.raises(InvalidConfigError, match="not empty"):
        quantize(src, tmp_path / "out", CONFIG)
    assert files(tmp_path / "out") == before


def test_a_truncated_shard_is_refused(tmp_path: Path) -> None:
    src = checkpoint(tmp_path / "src", {"a.weight": gaussian(32, 32)})
    os.truncate(src / "model.safetensors", 2000)
    with pytest.raises(UnsafeFileError, match="2000 bytes"):
        quantize(src, tmp_path / "out", CONFIG)


def test_calibration_data_is_refused_by_a_data_free_job(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfigError, match="calibration"):
        quantize(tmp_path, tmp_path / "out", CONFIG, calibration=["text"])


def test_progress_covers_every_tensor_and_ends_at_its_total(tmp_path: Path) -> None:
    src = models.fused_experts(tmp_path / "src")
    steps: list[Progress] = []
    quantize(src, tmp_path / "out", CONFIG, progress=steps.append)

    def ends(phase: str) -> Sequence[Progress]:
        return [step for step in steps if step.phase == phase]

    assert [step.phase for step in steps] == sorted(
        (step.phase for step in steps), key=["validating", "quantizing", "packaging"].index
    )
    work = ends("quantizing")
    tensors = plan_folder(src, CONFIG).tensors
    assert len(work) == sum(t.coding.view.count if t.coding else 1 for t in tensors)
    assert work[-1].current == work[-1].total == sum(t.params for t in tensors)
    assert ends("validating")[-1].current == ends("validating")[-1].total


FULL_DISK = """
import resource, sys
from nupes_core.config import QuantizationConfig
from nupes_core.errors import DiskFullError
from nupes_core.modelfolder import open_folder
from nupes_core.module import quantize_model
from nupes_core.pipeline import quantize
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), int(sys.argv[3])))
try:
    quantize(sys.argv[1], sys.argv[2], QuantizationConfig())
except DiskFullError:
    sys.exit(7)
"""


@pytest.mark.parametrize("room", [1_000, 20_000], ids=["first shard", "second shard"])
def test_a_full_disk_is_a_typed_error_and_leaves_nothing(tmp_path: Path, room: int) -> None:
    src = checkpoint(tmp_path / "src", {f"{n}.weight": gaussian(n, n) for n in (128, 256)}, shards=2)
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(src), str(tmp_path / "out"), str(room)], check=False)
    assert done.returncode == 7
    assert sorted(path.name for path in tmp_path.iterdir()) == ["src"]


def test_a_result_larger_than_the_free_space_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nupes_core import staging
    from nupes_core.errors import DiskFullError

    src = checkpoint(tmp_path / "src", {"a.weight": gaussian(32, 32)})
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 100}))
    with pytest.raises(DiskFullError, match="100 are free"):
        quantize(src, tmp_path / "out", CONFIG)
