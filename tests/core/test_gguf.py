"""Artifacts of format `gguf`, read by the package `gguf` and loaded by transformers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

import nupes_core
from nupes_core import quantize
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
from nupes_core.errors import InvalidConfigError, UnsupportedArchitectureError
from nupes_core.gguf.architectures import architecture_of
from nupes_core.gguf.blocks import encode_blocks
from nupes_core.gguf.blocktypes import type_of
from nupes_core.gguf.model import decoded_gguf
from nupes_core.gguf.rotary import Rotary, rotary
from nupes_core.plan import plan_folder
from nupes_core.probe import probe_folder
from nupes_core.quantizer.sizes import model_bits_per_weight
from tests.core.tiny import VOCABULARY, save
from tests.models import llama

BOOKLM = Path(__file__).resolve().parents[2] / "examples" / "booklm"
TOKENS = torch.arange(40).view(2, 20) * 7 % VOCABULARY


def settings(bits: int, **layers: Any) -> QuantizationConfig:
    return QuantizationConfig(WeightConfig(bits=bits), LayerSelection(**layers))


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(TOKENS).logits
    return found


@pytest.mark.parametrize("bits", [4, 5, 8])
def test_blocks_decode_to_code_times_scale_in_the_reader_of_the_format(bits: int) -> None:
    generator = torch.Generator().manual_seed(bits)
    codes = torch.randint(1 << bits, (6, 96), generator=generator, dtype=torch.uint8)
    scales = torch.randn(6, 3, generator=generator).half()
    blocks = encode_blocks(codes, scales, bits).numpy()
    kind = gguf.GGMLQuantizationType[{4: "Q4_0", 5: "Q5_0", 8: "Q8_0"}[bits]]
    decoded = torch.from_numpy(gguf.dequantize(blocks, kind))
    expected = (codes.float() - (1 << (bits - 1))) * scales.float().repeat_interleave(32, 1)
    assert torch.equal(decoded, expected)


@pytest.mark.parametrize(("family", "bits"), [("llama", 4), ("qwen2", 8), ("llama_tied", 5)])
def test_transformers_computes_with_the_weights_that_the_manifest_measured(
    family: str, bits: int, tmp_path: Path
) -> None:
    src = save(family, tmp_path / "src")
    config = settings(bits, exclude=("lm_head",))
    report = quantize(src, tmp_path / "out", config, formats=["gguf"])
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", gguf_file="model.gguf", dtype=torch.float32)
    original = AutoModelForCausalLM.from_pretrained(src, dtype=torch.float32)
    quantized = [layer for layer in report.layers if layer.bits]
    assert len(quantized) == 12, "columns of 48 are no whole blocks"
    for layer in quantized:
        before, after = (each.get_submodule(layer.name).weight for each in (original, loaded))
        error = float((before - after).detach().square().mean())
        assert error == pytest.approx(layer.mse, rel=1e-3)
    for name, tensor in original.state_dict().items():
        if name.removesuffix(".weight") not in {layer.name for layer in quantized}:
            assert torch.equal(loaded.state_dict()[name], tensor), name
    difference = (logits(loaded) - logits(original)).norm() / logits(original).norm()
    assert 0 < float(difference) < (0.02 if bits == 8 else 0.2)
    assert model_bits_per_weight(tmp_path / "out") == pytest.approx(bits + 0.5)
    assert report.bits_per_weight == pytest.approx(bits + 0.5)
    assert report.bytes_after == (tmp_path / "out/model.gguf").stat().st_size
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_our_own_loader_and_check_take_it(tmp_path: Path) -> None:
    src = save("llama", tmp_path / "src")
    quantize(src, tmp_path / "out", settings(8), formats=["nupes", "gguf"])
    artifact = tmp_path / "out/gguf"
    check = verify_artifact(artifact, source=src, expected=probe_folder(artifact))
    assert (check.matrices, check.compared, check.forward) == (12, 12, True)
    assert nupes_core.load(artifact).dtype == torch.float32


def test_files_of_a_sharded_model_become_one_container(tmp_path: Path) -> None:
    src = llama(tmp_path / "src", shard_bytes=90_000)
    quantize(src, tmp_path / "out", settings(4), formats=["gguf"])
    assert verify_artifact(tmp_path / "out", source=src).forward
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"model.gguf", "config.json", "manifest.json"}
    assert not list((tmp_path / "out").glob("*safetensors*"))


def test_the_container_tells_llama_cpp_what_it_has_to_know(tmp_path: Path) -> None:
    quantize(BOOKLM, tmp_path / "out", settings(4), formats=["gguf"])
    fields = gguf.GGUFReader(tmp_path / "out/model.gguf").fields
    told = {key: field.contents() for key, field in fields.items()}
    config = json.loads((BOOKLM / "config.json").read_text())
    vocabulary = json.loads((BOOKLM / "tokenizer.json").read_text())["model"]
    assert told["general.architecture"] == "llama"
    assert told["llama.block_count"] == config["num_hidden_layers"]
    assert told["llama.rope.freq_base"] == config["rope_parameters"]["rope_theta"]
    assert told["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(config["rms_norm_eps"])
    assert (told["tokenizer.ggml.model"], told["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
    assert len(told["tokenizer.ggml.tokens"]) == config["vocab_size"]
    assert all(told["tokenizer.ggml.tokens"][index] == token for token, index in vocabulary["vocab"].items())
    assert len(told["tokenizer.ggml.merges"]) == len(vocabulary["merges"])
    assert told["tokenizer.ggml.eos_token_id"] == config["eos_token_id"]
    kinds = {tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "out/model.gguf").tensors}
    assert kinds == {"Q4_K", "IQ4_NL", "BF16", "F32"}


def test_the_type_nearest_to_the_asked_bits_is_taken(tmp_path: Path) -> None:
    src = save("llama", tmp_path / "src")
    widths = {}
    for asked in range(2, 9):
        plan = plan_folder(src, settings(asked, overrides=(LayerOverride("o_proj", bits=8),)), formats=["gguf"])
        found = {tensor.module: tensor.coding.format.bits for tensor in plan.quantized if tensor.coding}
        assert found.pop("model.layers.0.self_attn.o_proj") == 8
        widths[asked] = found["model.layers.0.self_attn.q_proj"]
    assert widths == {2: 4, 3: 4, 4: 4, 5: 5, 6: 5, 7: 8, 8: 8}


@pytest.mark.parametrize("optimize", ["data_free", "data_driven"])
def test_rows_of_whole_super_blocks_take_other_types_than_the_rest(optimize: str) -> None:
    found = {}
    for asked in range(2, 9):
        plan = plan_folder(BOOKLM, replace(settings(asked), optimize=optimize), formats=["gguf"])
        codings = {tensor.module.rpartition(".")[2]: tensor.coding for tensor in plan.quantized}
        found[asked] = tuple(
            type_of(coding.format.layout, coding.format.bits).name
            for coding in (codings["q_proj"], codings["down_proj"])
            if coding
        )
    whole = "Q2_K Q3_K Q4_K Q5_K Q6_K Q8_0 Q8_0" if optimize == "data_free" else "Q2_K Q3_K IQ4_NL Q5_0 Q6_K Q8_0 Q8_0"
    rest = "IQ4_NL IQ4_NL IQ4_NL Q5_0 Q5_0 Q8_0 Q8_0"
    assert list(found.values()) == list(zip(whole.split(), rest.split(), strict=True)), "rows of 256 and of 704"


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6])
def test_plan_file_manifest_and_reader_agree_on_types_sizes_and_weights(bits: int, tmp_path: Path) -> None:
    plan = plan_folder(BOOKLM, settings(bits), formats=["gguf"])
    report = quantize(BOOKLM, tmp_path / "out", settings(bits), formats=["gguf"])
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "out/model.gguf").tensors}
    planned = {tensor.module: tensor for tensor in plan.quantized}
    before = AutoModelForCausalLM.from_pretrained(BOOKLM, dtype=torch.float32)
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "out", gguf_file="model.gguf", dtype=torch.float32)
    names = {"self_attn.q_proj": "attn_q", "mlp.down_proj": "ffn_down", "mlp.gate_proj": "ffn_gate"}
    for ours, theirs in names.items():
        module = f"model.layers.3.{ours}"
        tensor, coding = stored[f"blk.3.{theirs}.weight"], planned[module].coding
        assert coding is not None
        assert tensor.tensor_type.name == type_of(coding.format.layout, coding.format.bits).name
        assert tensor.n_bytes == planned[module].bytes_after
        layer = next(each for each in report.layers if each.name == module)
        error = (before.get_submodule(module).weight - after.get_submodule(module).weight).detach().square().mean()
        assert float(error) == pytest.approx(layer.mse, rel=1e-3)
    assert report.bits_per_weight == pytest.approx(plan.bits_per_weight)
    assert model_bits_per_weight(tmp_path / "out") == pytest.approx(plan.bits_per_weight)
    parts = dict(decoded_gguf(tmp_path / "out", planned))
    for module, weight in parts.items():
        assert torch.equal(weight, after.get_submodule(module).weight), module


@pytest.mark.parametrize("family", ["llama", "llama_tied", "qwen2"])
def test_the_planned_size_is_that_of_the_tensors_in_the_file(family: str, tmp_path: Path) -> None:
    src = save(family, tmp_path / "src")
    [planned] = plan_folder(src, settings(4, embeddings=True), formats=["gguf"]).formats
    quantize(src, tmp_path / "out", settings(4, embeddings=True), formats=["gguf"])
    reader = gguf.GGUFReader(tmp_path / "out/model.gguf")
    assert planned.bytes_after == (tmp_path / "out/model.gguf").stat().st_size - reader.data_offset


def test_codes_that_were_learnt_on_data_are_what_the_reader_gets(tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape = {"vocab_size": VOCABULARY, "hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1}
    src = tmp_path / "src"
    LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=4, tie_word_embeddings=True)).save_pretrained(src)
    asked = replace(
        settings(3, overrides=(LayerOverride("mlp", bits=2), LayerOverride("o_proj", bits=4))),
        optimize="data_driven",
        training=TrainingConfig(steps=8, batch_size=4),
        calibration=CalibrationConfig(samples=16, length=16),
    )
    tokens = torch.randint(VOCABULARY, (16, 16), generator=torch.Generator().manual_seed(0))
    report = quantize(src, tmp_path / "out", asked, formats=["gguf"], calibration=tokens)
    layouts = {layer.name.rpartition(".")[2]: layer.layout for layer in report.layers if layer.bits}
    assert {layouts[name] for name in ("q_proj", "k_proj", "v_proj")} == {"Q3_K"}
    assert (layouts["o_proj"], layouts["up_proj"]) == ("IQ4_NL", "Q2_K")
    assert all(layer.codes_moved is not None for layer in report.layers if layer.bits)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", gguf_file="model.gguf", dtype=torch.float32)
    original = AutoModelForCausalLM.from_pretrained(src, dtype=torch.float32)
    for layer in report.layers:
        if layer.bits:
            before, after = (each.get_submodule(layer.name).weight for each in (original, loaded))
            assert float((before - after).detach().square().mean()) == pytest.approx(layer.mse, rel=1e-3)


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize("base", [500_000.0, 10_000.0])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_frequencies_of_llama_3_1_are_divided_as_transformers_does(head_dim: int, base: float) -> None:
    told = {**LLAMA3, "rope_theta": base}
    config = LlamaConfig(head_dim=head_dim, rope_parameters=told, max_position_embeddings=131_072)
    divided, factor = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = base ** -(torch.arange(0, head_dim, 2).double() / head_dim)
    divisors = rotary({"rope_parameters": told}).divisors(head_dim)
    assert divisors is not None
    assert factor == 1
    assert {1.0, 8.0} < set(divisors), "all three bands"
    torch.testing.assert_close(plain / torch.tensor(divisors), divided.double(), rtol=1e-5, atol=0)


def test_scaled_positions_are_in_the_file(tmp_path: Path) -> None:
    shape = {"vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
    for name, told in {"llama3": LLAMA3, "linear": {"rope_type": "linear", "rope_theta": 5e4, "factor": 4.0}}.items():
        src = tmp_path / name
        LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=2, rope_parameters=told)).save_pretrained(src)
        quantize(src, src / "out", settings(4), formats=["gguf"])
    long, stretched = (gguf.GGUFReader(tmp_path / name / "out/model.gguf") for name in ("llama3", "linear"))
    [divisors] = [tensor.data.tolist() for tensor in long.tensors if tensor.name == "rope_freqs.weight"]
    assert divisors == pytest.approx(rotary({"rope_scaling": LLAMA3}).divisors(32))
    assert "llama.rope.scaling.type" not in long.fields
    told = {key.removeprefix("llama.rope."): field.contents() for key, field in stretched.fields.items()}
    assert (told["scaling.type"], told["scaling.factor"], told["freq_base"]) == ("linear", 4.0, 5e4)
    assert all(tensor.name != "rope_freqs.weight" for tensor in stretched.tensors)


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "of the kind 'yarn'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "of the kind 'dynamic'"),
        ({"rope_parameters": {"rope_type": ["llama3"]}}, "of the kind"),
        ({"rope_parameters": "llama3"}, "no object"),
        ({"rope_parameters": {**LLAMA3, "factor": 0}}, "factor is 0"),
        ({"rope_parameters": {**LLAMA3, "factor": float("nan")}}, "factor is nan"),
        ({"rope_parameters": {**LLAMA3, "high_freq_factor": 1.0}}, "not below"),
        ({"rope_scaling": {"type": "linear"}}, "factor is None"),
        ({"rope_theta": "10000"}, "rope_theta is '10000'"),
        ({"rope_theta": True}, "rope_theta is True"),
        ({"partial_rotary_factor": 0.5}, "part of a head"),
    ],
)
def test_positions_that_llama_cpp_is_not_told_of_are_refused(told: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedArchitectureError, match=words) as caught:
        rotary(told)
    assert "Ask for the format nupes" in str(caught.value.hint)


GEMMA_3 = {
    "model_type": "gemma3_text",
    "hidden_size": 1152,
    "intermediate_size": 6912,
    "max_position_embeddings": 32_768,
    "num_attention_heads": 4,
    "num_hidden_layers": 12,
    "vocab_size": 262_144,
    "sliding_window": 512,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "sliding_window_pattern": 6,
    "rope_local_base_freq": 10_000,
    "rope_theta": 1_000_000,
}


def test_a_gemma_3_in_words_of_transformers_4_is_written() -> None:
    assert architecture_of(GEMMA_3).name == "gemma3"
    assert rotary({"rope_scaling": {"rope_type": "linear", "factor": 8.0}}, base=1e6) == Rotary(1e6, linear=8.0)


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"query_pre_attn_scalar": 168}, "query_pre_attn_scalar"),
        ({"sliding_window_pattern": 4}, "each sixth layer"),
        ({"layer_types": ["full_attention"] * 12}, "each sixth layer"),
        ({"rope_local_base_freq": 20_000}, "other positions"),
        ({"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}}, "layers with a window"),
        ({"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "kind 'yarn'"),
        ({"rope_parameters": {"full_attention": 7}}, "no object"),
        ({"hidden_activation": "silu"}, "activation 'silu'"),
        ({"sliding_window": None}, "sliding_window is None"),
        ({"head_dim": None, "query_pre_attn_scalar": None}, "head_dim is None"),
        ({"hidden_size": "1152"}, "hidden_size is '1152'"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True"),
        ({"vocab_size": 1 << 40}, "vocab_size"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({"model_type": "qwen3", "hidden_activation": None, "hidden_act": "gelu"}, "activation 'gelu'"),
    ],
)
def test_a_gemma_3_that_llama_cpp_would_compute_in_another_way_is_refused(told: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedArchitectureError, match=words):
        architecture_of({**GEMMA_3, **told})


def test_words_of_transformers_4_are_understood() -> None:
    old = {"rope_theta": 5e5, "rope_scaling": {key: value for key, value in LLAMA3.items() if key != "rope_theta"}}
    assert rotary(old) == rotary({"rope_parameters": LLAMA3})
    assert rotary({"rope_scaling": None, "rope_theta": None, "partial_rotary_factor": None}) == Rotary(10_000.0)


def test_what_it_can_not_hold_is_said_before_any_work(tmp_path: Path) -> None:
    for family in ("gpt2", "gemma2"):
        with pytest.raises(UnsupportedArchitectureError, match="not written for architectures but"):
            plan_folder(save(family, tmp_path / family), settings(4), formats=["gguf"])
    with pytest.raises(UnsupportedArchitectureError, match="sliding_window"):
        plan_folder(save("mistral", tmp_path / "mistral"), settings(4), formats=["gguf"])
    with pytest.raises(UnsupportedArchitectureError, match="each sixth layer"):
        plan_folder(save("gemma3", tmp_path / "gemma3"), settings(4), formats=["gguf"])
    activations = QuantizationConfig(activations=ActivationConfig())
    with pytest.raises(InvalidConfigError, match="activations"):
        plan_folder(save("llama", tmp_path / "llama"), activations, formats=["gguf"])
