"""Tiny random models as Hugging Face folders, one for each shape of checkpoint that the pipeline has to know."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel, GptOssConfig, GptOssForCausalLM, LlamaConfig, LlamaForCausalLM


def llama(path: Path, *, tied: bool = False, dtype: torch.dtype = torch.float32, shard_bytes: int = 10**9) -> Path:
    """A 2-layer Llama of width 64, vocabulary 96."""
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=88,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
    )
    return _save(LlamaForCausalLM(_seeded(config)), path, dtype, shard_bytes)


def gpt2(path: Path, *, dtype: torch.dtype = torch.float32) -> Path:
    """A 2-layer GPT-2 of width 32: linear layers stored [in, out], tied embeddings."""
    config = GPT2Config(vocab_size=96, n_positions=64, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    return _save(GPT2LMHeadModel(_seeded(config)), path, dtype, 10**9)


def fused_experts(path: Path, *, dtype: torch.dtype = torch.bfloat16) -> Path:
    """A 1-layer mixture of 4 experts whose weights are 3-D parameters, stored [experts, in, out]."""
    config = GptOssConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=64,
        pad_token_id=0,
        eos_token_id=0,
    )
    return _save(GptOssForCausalLM(_seeded(config)), path, dtype, 10**9)


def checkpoint(
    path: Path, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any] | None = None, shards: int = 1
) -> Path:
    """A folder with just these tensors, in the given number of files."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config or {"model_type": "unheard_of"}))
    if shards == 1:
        save_file(dict(tensors), path / "model.safetensors", metadata={"format": "pt"})
        return path
    files = {name: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, name in enumerate(tensors)}
    for file in sorted(set(files.values())):
        save_file({name: t for name, t in tensors.items() if files[name] == file}, path / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": files}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path


def gaussian(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Reproducible weights of variance 1."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def _seeded(config: Any) -> Any:
    torch.manual_seed(0)
    return config


def _save(model: Any, path: Path, dtype: torch.dtype, shard_bytes: int) -> Path:
    model.to(dtype).save_pretrained(path, max_shard_size=shard_bytes)
    (path / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": "code.Tok"}, "model_max_length": 64}')
    (path / "vocab.json").write_text('{"a": 0, "_b": 1}')
    return path
