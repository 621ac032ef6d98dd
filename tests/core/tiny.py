"""Tiny random models of several families, saved as the folders that users have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertModel,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    ResNetConfig,
    ResNetForImageClassification,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from nupes_core import ExponentConfig, LayerSelection, QuantizationConfig, WeightConfig

VOCABULARY = 96

QUICK = QuantizationConfig(
    weights=WeightConfig(bits=4, group_size=32, exponent=ExponentConfig("fixed", "layer", 0.8)),
    layers=LayerSelection(exclude=("lm_head",)),
)
"""No search, so that a test takes no time."""

_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def tiny_llama(*, tied: bool = False) -> Any:
    return LlamaForCausalLM(LlamaConfig(**_SIZES, tie_word_embeddings=tied))


def tiny_gpt2() -> Any:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2
        )
    )


def tiny_mixtral() -> Any:
    return MixtralForCausalLM(MixtralConfig(**_SIZES, num_local_experts=4))


def tiny_qwen3_moe() -> Any:
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**_SIZES, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=40))


def tiny_gpt_oss() -> Any:
    return GptOssForCausalLM(GptOssConfig(**_SIZES, num_local_experts=4, num_experts_per_tok=2))


def tiny_phi() -> Any:
    sizes = {key: value for key, value in _SIZES.items() if key != "head_dim"}
    return PhiForCausalLM(PhiConfig(**sizes))


def tiny_opt() -> Any:
    return OPTForCausalLM(
        OPTConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            ffn_dim=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
            word_embed_proj_dim=32,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


def tiny_gpt_neox() -> Any:
    sizes = {key: value for key, value in _SIZES.items() if key not in {"num_key_value_heads", "head_dim"}}
    return GPTNeoXForCausalLM(GPTNeoXConfig(**sizes))


def tiny_bert() -> Any:
    sizes = {key: value for key, value in _SIZES.items() if key not in {"num_key_value_heads", "head_dim"}}
    return BertModel(BertConfig(**sizes))


def tiny_t5() -> Any:
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0
        )
    )


def tiny_vit() -> Any:
    return ViTForImageClassification(
        ViTConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=48,
            image_size=32,
            patch_size=8,
            num_labels=3,
        )
    )


def tiny_resnet() -> Any:
    model = ResNetForImageClassification(
        ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 2], layer_type="basic", num_labels=3)
    )
    for module in model.modules():  # as after training: batch norms that do something
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model


BUILDERS: dict[str, Callable[[], Any]] = {
    "llama": tiny_llama,
    "llama_tied": lambda: tiny_llama(tied=True),
    "gpt2": tiny_gpt2,
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**_SIZES)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**_SIZES)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**_SIZES, sliding_window=8)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**_SIZES, sliding_window=8)),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**_SIZES, sliding_window=8, sliding_window_pattern=2)),
    "phi": tiny_phi,
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**_SIZES)),
    "opt": tiny_opt,
    "gpt_neox": tiny_gpt_neox,
    "mixtral": tiny_mixtral,
    "qwen3_moe": tiny_qwen3_moe,
    "gpt_oss": tiny_gpt_oss,
    "bert": tiny_bert,
    "t5": tiny_t5,
    "vit": tiny_vit,
    "resnet": tiny_resnet,
}


def build(family: str) -> Any:
    """Return the same random float32 model each time."""
    torch.manual_seed(7)
    return BUILDERS[family]().eval()


def save(family: str, path: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    """Save the model of a family and return its folder."""
    build(family).to(dtype).save_pretrained(path)
    return path
