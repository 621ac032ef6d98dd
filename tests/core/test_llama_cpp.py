"""Artifacts of format `gguf` in llama.cpp itself: it computes what transformers' reader does, which we measure by."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoTokenizer,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import nupes_core
from nupes_core import quantize
from nupes_core.config import LayerSelection, QuantizationConfig, WeightConfig
from nupes_core.formats.gguf import BLOCK_TYPES, LEARNT_TYPES, SUPER_TYPES, nearest
from nupes_core.gguf.architectures import ARCHITECTURES
from nupes_core.gguf.rotary import KINDS
from tests.core.llamacpp import next_tokens

BOOKLM = Path(__file__).resolve().parents[2] / "examples" / "booklm"
TABLES = (SUPER_TYPES, LEARNT_TYPES, BLOCK_TYPES)
TEXTS = (
    "The king said to his son that",
    "It was a cold night, and 3 ships",
    "“Never,” she said;\n\n  “not for 100 pounds",
)
SIZES: Mapping[str, Any] = {
    "vocab_size": 2048,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}
GEMMA = {**SIZES, "num_hidden_layers": 7, "head_dim": 64, "query_pre_attn_scalar": 64, "sliding_window": 48}
GEMMA_SCALED = {
    "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
}

FAMILIES: Mapping[str, Callable[[], Any]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "llama, tied": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=None)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=64)),
    "gemma 3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**GEMMA)),
    "gemma 3, scaled": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**GEMMA, rope_parameters=GEMMA_SCALED)),
    "llama 3.1": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, rope_parameters=LLAMA3)),
    "linear": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, rope_parameters=LINEAR)),
    "mistral, linear": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=None, rope_parameters=LINEAR)),
}


@torch.no_grad()
def expected(model: Any, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
    """Return what transformers expects after each prompt: log-probabilities [prompts, vocabulary]."""
    rows = [model(torch.tensor([list(prompt)])).logits[0, -1].float().log_softmax(-1) for prompt in prompts]
    return torch.stack(rows)


def divergence(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Return KL(p‖q) of each row, in nats."""
    return (p.exp() * (p - q)).sum(-1)


def pieces(count: int, length: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(length)
    rows: list[list[int]] = torch.randint(1, 2048, (count, length), generator=generator).tolist()
    return rows


def booklm_prompts() -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(BOOKLM)
    return [tokenizer(text)["input_ids"] for text in TEXTS]


@pytest.mark.parametrize(("bits", "embeddings"), [(2, False), (3, True), (4, False), (5, True), (8, False), (8, True)])
def test_llama_cpp_computes_what_the_reader_does(bits: int, embeddings: bool, tmp_path: Path) -> None:
    settings = QuantizationConfig(WeightConfig(bits=bits), LayerSelection(embeddings=embeddings))
    quantize(BOOKLM, tmp_path / "out", settings, formats=["gguf"])
    prompts = booklm_prompts()
    read = expected(nupes_core.load(tmp_path / "out"), prompts)
    found = next_tokens(tmp_path / "out/model.gguf", prompts)
    apart = divergence(read, found)
    assert found.exp().sum(-1).allclose(torch.ones(len(prompts)), atol=1e-4)
    assert apart.max() < 5e-4, "it multiplies with 8-bit activations; all else is the same"
    assert read.argmax(-1).equal(found.argmax(-1))


def test_llama_cpp_splits_text_as_the_tokenizer_does(tmp_path: Path) -> None:
    quantize(BOOKLM, tmp_path / "out", QuantizationConfig(WeightConfig(bits=8)), formats=["gguf"])
    found = next_tokens(tmp_path / "out/model.gguf", [*TEXTS, *booklm_prompts()])
    assert found[: len(TEXTS)].equal(found[len(TEXTS) :])


def test_the_lines_of_the_page_write_and_run_it(tmp_path: Path) -> None:
    page = (BOOKLM.parents[1] / "docs/how-to/llama-cpp.md").read_text("utf-8")
    write, use = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    places = {"MODEL": str(BOOKLM), "OUT": str(tmp_path / "out")}
    lines = re.sub("|".join(places), lambda match: places[match[0]], f"{write}\n{use}\nprint(text)")
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=True, timeout=120)
    assert len(done.stdout.split()) > 5


def test_the_page_has_the_types_that_are_written() -> None:
    page = (BOOKLM.parents[1] / "docs/how-to/llama-cpp.md").read_text("utf-8")
    for bits in range(2, 9):
        types = (nearest(each, bits) for each in TABLES)
        assert f"| {bits} | {' | '.join(types)} |" in page
    assert all(kind in page for kind in (*ARCHITECTURES, *KINDS))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_architecture_computes_the_same_in_llama_cpp(family: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    src = tmp_path / "src"
    FAMILIES[family]().to(torch.bfloat16).save_pretrained(src)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(BOOKLM / name, src / name)
    quantize(src, tmp_path / "out", QuantizationConfig(WeightConfig(bits=8)), formats=["gguf"])
    prompts = pieces(3, 200)
    read = expected(nupes_core.load(tmp_path / "out"), prompts)
    float_model = expected(nupes_core.load(src, dtype=torch.float32), prompts)
    found = next_tokens(tmp_path / "out/model.gguf", prompts)
    another = divergence(read, read.roll(1, 0))
    assert (divergence(read, found) < 0.005 * another).all()
    assert (divergence(float_model, found) < 0.01 * another).all(), "reader and file could share a mistake"
