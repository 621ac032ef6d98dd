from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nupes_core.config import (
    ActivationConfig,
    CalibrationConfig,
    LayerOverride,
    LayerSelection,
    QuantizationConfig,
    TrainingConfig,
    WeightConfig,
)
from nupes_core.errors import InvalidConfigError, UnsafeFileError
from nupes_core.header import TensorInfo, TensorSpec, build_header
from nupes_core.plan import Plan, plan_folder, plan_headers
from nupes_core.planned import PlannedTensor
from nupes_core.selection import ModelFacts, matrix_view
from tests import models

CONFIG = QuantizationConfig(weights=WeightConfig(group_size=16))
MIXTURE = {"model_type": "granitemoe", "hidden_size": 64, "num_local_experts": 4}


def planned(plan: Plan, name: str) -> PlannedTensor:
    return next(tensor for tensor in plan.tensors if tensor.name == name)


def view(name: str, shape: tuple[int, ...], config: dict[str, Any], dtype: str = "BF16", **selection: Any) -> Any:
    info = TensorInfo(name, dtype, shape, 0, 0)
    return matrix_view(info, ModelFacts.from_config(config), LayerSelection(**selection))


def test_a_llama_quantizes_its_linear_layers_and_says_why_the_rest_stays(tmp_path: Path) -> None:
    plan = plan_folder(models.llama(tmp_path / "m"), CONFIG)
    assert len(plan.quantized) == 2 * 7
    reasons = {tensor.name: tensor.skipped_reason for tensor in plan.skipped}
    assert "layers.exclude 'lm_head'" in (reasons["lm_head.weight"] or "")
    assert "embedding" in (reasons["model.embed_tokens.weight"] or "")
    assert "norm" in (reasons["model.norm.weight"] or "")
    params = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 88)
    assert plan.quantized_params == params
    assert plan.coverage_pct == pytest.approx(100 * params / (params + 2 * 96 * 64 + 5 * 64))
    assert 4.5 < plan.bits_per_weight < 4.6


def test_embeddings_are_quantized_on_request_and_a_tied_head_follows_them(tmp_path: Path) -> None:
    folder = models.llama(tmp_path / "m", tied=True)
    both = QuantizationConfig(weights=CONFIG.weights, layers=LayerSelection(exclude=(), embeddings=True))
    assert planned(plan_folder(folder, both), "model.embed_tokens.weight").coding is not None
    assert view("lm_head.weight", (96, 64), {"tie_word_embeddings": True}) == "tied to the input embedding"


def test_gpt2_layers_are_read_along_their_inputs(tmp_path: Path) -> None:
    plan = plan_folder(models.gpt2(tmp_path / "m"), CONFIG)
    coding = planned(plan, "transformer.h.0.mlp.c_fc.weight").coding
    assert coding is not None
    assert coding.view.transposed
    assert (coding.format.rows, coding.format.cols) == (128, 32)
    assert {tensor.module.rpartition(".")[2] for tensor in plan.quantized} == {"c_attn", "c_proj", "c_fc"}


def test_fused_experts_count_as_covered(tmp_path: Path) -> None:
    plan = plan_folder(models.fused_experts(tmp_path / "m"), CONFIG)
    experts = planned(plan, "model.layers.0.mlp.experts.gate_up_proj")
    assert experts.shape == (4, 32, 96)
    assert experts.coding is not None
    assert experts.coding.view.count == 4
    assert experts.coding.view.transposed
    assert (experts.coding.format.rows, experts.coding.format.cols) == (96, 32)
    assert plan.quantized_params >= 4 * 3 * 32 * 48
    assert "router" in (planned(plan, "model.layers.0.mlp.router.weight").skipped_reason or "")


@pytest.mark.parametrize(
    ("name", "shape", "transposed"),
    [
        ("l.moe.experts.gate_up_proj", (4, 96, 64), False),
        ("l.moe.experts.gate_up_proj", (4, 64, 96), True),
        ("l.moe.experts.down_proj", (4, 64, 48), False),
        ("l.moe.experts.down_proj", (4, 48, 64), True),
        ("l.block_sparse_moe.input_linear.weight", (4, 96, 64), False),
    ],
)
def test_the_hidden_size_tells_how_experts_are_stored(name: str, shape: tuple[int, ...], transposed: bool) -> None:
    assert view(name, shape, MIXTURE).transposed is transposed


def test_the_model_type_tells_how_square_experts_are_stored() -> None:
    square = (4, 64, 64)
    assert not view("l.experts.down_proj", square, MIXTURE).transposed
    assert view("l.experts.down_proj", square, {**MIXTURE, "model_type": "gpt_oss"}).transposed


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "reason"),
    [
        ("conv.weight", (8, 3, 7, 7), "F32", "convolution of the image"),
        ("depthwise.weight", (8, 1, 7, 7), "F32", "convolution of single channels"),
        ("video.weight", (8, 3, 2, 4, 4), "F32", "5-D"),
        ("mamba.conv1d.weight", (64, 1, 4), "F32", "not fused experts"),
        ("l.A_log", (64, 16), "F32", "bare parameter"),
        ("l.q_proj.weight", (64, 64), "F8_E4M3", "F8_E4M3"),
        ("l.q_proj.weight", (64, 64), "I32", "I32"),
        ("l.q_proj.weight", (0, 64), "F32", "empty"),
        ("wpe.weight", (64, 64), "F32", "embedding"),
        ("encoder.position_embeddings.weight", (64, 64), "F32", "embedding"),
        ("transformer.tokens.weight", (4096, 64), "F32", "embedding"),
        ("l.block_sparse_moe.gate.weight", (4, 64), "F32", "router"),
        ("l.mlp.shared_expert_gate.weight", (1, 64), "F32", "router"),
    ],
)
def test_what_is_not_a_linear_layer_stays_with_its_reason(
    name: str, shape: tuple[int, ...], dtype: str, reason: str
) -> None:
    assert reason in view(name, shape, {**MIXTURE, "vocab_size": 4096}, dtype)


@pytest.mark.parametrize(
    ("name", "rows"),
    [("l.gate_proj.weight", 4), ("time_embedding.linear_1.weight", 48), ("score.weight", 96), ("lm_head.weight", 96)],
)
def test_names_that_only_look_like_tables_or_routers_are_linear_layers(name: str, rows: int) -> None:
    found = view(name, (rows, 64), {"vocab_size": 96, "hidden_size": 64, "num_experts": 4})
    assert (found.rows, found.cols) == (rows, 64)


def test_exclusions_and_overrides_are_by_module_and_the_last_override_wins(tmp_path: Path) -> None:
    layers = LayerSelection(
        exclude=("lm_head", r"layers\.1\.mlp"),
        overrides=(
            LayerOverride("self_attn", bits=8),
            LayerOverride("q_proj", bits=3, group_size=32),
            LayerOverride("k_proj", skip=True),
        ),
    )
    plan = plan_folder(models.llama(tmp_path / "m"), QuantizationConfig(weights=CONFIG.weights, layers=layers))

    def settings(name: str) -> tuple[int, int] | None:
        coding = planned(plan, f"model.layers.0.{name}.weight").coding
        return coding and (coding.weight.bits, coding.weight.group_size)

    assert settings("self_attn.o_proj") == (8, 16)
    assert settings("self_attn.q_proj") == (3, 32)
    assert settings("mlp.up_proj") == (4, 16)
    skipped = planned(plan, "model.layers.0.self_attn.k_proj.weight").skipped_reason
    assert "k_proj" in (skipped or "")
    assert r"layers\.1\.mlp" in (planned(plan, "model.layers.1.mlp.up_proj.weight").skipped_reason or "")


def test_a_layer_that_would_grow_is_left_alone() -> None:
    head, _ = build_header([TensorSpec("tiny.weight", "BF16", (2, 1))], {})
    plan = plan_headers({"m.safetensors": head}, {}, QuantizationConfig(weights=WeightConfig(bits=8)))
    assert "instead of 4" in (plan.tensors[0].skipped_reason or "")


def test_headers_alone_give_the_same_plan_as_the_folder(tmp_path: Path) -> None:
    folder = models.llama(tmp_path / "m", shard_bytes=60_000)
    heads = {path.name: path.read_bytes()[:20_000] for path in folder.glob("*.safetensors")}
    assert len(heads) > 2
    config = json.loads((folder / "config.json").read_text())
    assert plan_headers(heads, config, CONFIG) == plan_folder(folder, CONFIG)


def llama_headers(layers: int, *, hidden: int = 256, head: int = 32000) -> dict[str, bytes]:
    shapes = {"model.embed_tokens.weight": (1000, hidden), "lm_head.weight": (head, hidden)}
    for index in range(layers):
        prefix = f"model.layers.{index}"
        shapes |= {f"{prefix}.self_attn.{name}_proj.weight": (hidden, hidden) for name in "qkvo"}
        shapes |= {f"{prefix}.mlp.up_proj.weight": (2 * hidden, hidden), f"{prefix}.input_layernorm.weight": (hidden,)}
    return {"m.safetensors": build_header([TensorSpec(name, "BF16", shape) for name, shape in shapes.items()], {})[0]}


def on_data(headers: dict[str, bytes], **settings: Any) -> Plan:
    config = QuantizationConfig(**{"optimize": "data_driven", **settings})
    return plan_headers(headers, {"hidden_size": 256, "vocab_size": 32000}, config)


def test_runs_on_data_take_the_memory_of_one_block_and_the_time_and_disk_of_all() -> None:
    free = plan_headers(llama_headers(8), {}, QuantizationConfig())
    short, long = on_data(llama_headers(2)), on_data(llama_headers(8))
    assert long.peak_memory_bytes == short.peak_memory_bytes > free.peak_memory_bytes
    assert 3 < (long.seconds - 5) / (short.seconds - 5) < 5
    blocks = sum(tensor.bytes_after for tensor in long.quantized)
    assert long.disk_bytes == free.disk_bytes + blocks


def test_samples_take_memory_by_their_hidden_states_and_steps_take_time() -> None:
    few = on_data(llama_headers(2), calibration=CalibrationConfig(samples=64, length=128))
    many = on_data(llama_headers(2), calibration=CalibrationConfig(samples=1064, length=128))
    assert many.peak_memory_bytes - few.peak_memory_bytes == 4 * 1000 * 128 * 256 * 4
    slow = on_data(llama_headers(2), training=TrainingConfig(steps=640))
    assert slow.seconds > 3 * on_data(llama_headers(2)).seconds
    assert slow.peak_memory_bytes == on_data(llama_headers(2)).peak_memory_bytes


def test_a_head_is_never_loaded_and_a_large_table_is_while_the_blocks_are_not() -> None:
    small, large = on_data(llama_headers(2)), on_data(llama_headers(2, head=4_000_000))
    assert large.peak_memory_bytes == small.peak_memory_bytes
    table = build_header([TensorSpec("model.embed_tokens.weight", "BF16", (4_000_000, 256))], {})[0]
    headers = {**llama_headers(2), "t.safetensors": table}
    headers["m.safetensors"] = headers["m.safetensors"].replace(b"model.embed_tokens", b"model.other_embeds")
    assert on_data(headers).peak_memory_bytes > 4 * 4_000_000 * 256


def test_static_activations_run_the_model_and_train_nothing() -> None:
    static = ActivationConfig(scaling="static")
    free = plan_headers(llama_headers(2), {}, QuantizationConfig())
    run, trained = on_data(llama_headers(2), optimize="data_free", activations=static), on_data(llama_headers(2))
    assert free.seconds < run.seconds < trained.seconds / 2
    assert free.peak_memory_bytes < run.peak_memory_bytes < trained.peak_memory_bytes


def test_an_evaluation_takes_both_models_in_float32_and_their_logits_or_what_the_sampled_text_takes() -> None:
    def peak(headers: dict[str, bytes], context: int | None) -> int:
        facts = {"hidden_size": 256, "vocab_size": 32000}
        return plan_headers(headers, facts, QuantizationConfig(), evaluation_context=context).peak_memory_bytes

    few, many = llama_headers(2), llama_headers(8)
    block = 4 * 256 * 256 + 512 * 256 + 256
    assert peak(many, 256) - peak(few, 256) == 2 * 4 * 6 * block
    assert peak(many, 256) > peak(many, None) + 2 * 4 * (33000 * 256 + 8 * block)
    assert peak(few, 65536) - peak(few, 32768) == 2 * 4 * 32768 * 32000
    written = 4 * 8192 * 2 * 256 * 2
    assert peak(llama_headers(64), 8) - peak(llama_headers(62), 8) == 2 * 4 * 2 * block + written


def test_the_list_with_the_most_quantized_weights_is_the_one_that_is_learnt(tmp_path: Path) -> None:
    experts = plan_folder(models.fused_experts(tmp_path / "m"), replace(CONFIG, optimize="data_driven"))
    attention = sum(t.bytes_after for t in experts.quantized if "self_attn" in t.name)
    assert experts.disk_bytes - plan_folder(tmp_path / "m", CONFIG).disk_bytes == attention > 0


def test_a_model_that_is_quantized_already_is_refused() -> None:
    with pytest.raises(InvalidConfigError, match="gptq"):
        plan_headers({}, {"quantization_config": {"quant_method": "gptq"}}, CONFIG)


def test_two_files_with_the_same_tensor_are_refused() -> None:
    head, _ = build_header([TensorSpec("a.weight", "BF16", (2, 1))], {})
    with pytest.raises(UnsafeFileError, match=r"a\.weight"):
        plan_headers({"1.safetensors": head, "2.safetensors": head}, {}, CONFIG)


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfigError, match="gguf2"):
        plan_headers({}, {}, CONFIG, formats=("gguf2",))


def test_the_plan_as_json_lists_layers_and_reasons(tmp_path: Path) -> None:
    plan = plan_folder(models.llama(tmp_path / "m"), CONFIG).to_dict()
    assert json.loads(json.dumps(plan)) == plan
    assert plan["layers"][0]["bits"] == 4
    assert all(layer["skipped_reason"] for layer in plan["skipped"])
    assert plan["peak_memory_bytes"] > 0
    assert plan["disk_bytes"] > plan["artifact_bytes"]
    assert plan["seconds"] > 0


def test_planning_loads_neither_torch_nor_numpy() -> None:
    code = (
        "import sys, nupes_core.plan, nupes_core.manifest;"
        "print([m for m in ('torch', 'numpy', 'safetensors', 'transformers') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
