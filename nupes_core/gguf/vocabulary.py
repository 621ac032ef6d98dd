"""The vocabulary of a GGUF file, from `tokenizer.json`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf

_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")

_SPLITS = {
    r"\p{N}{1,3}": "llama-bpe",
    r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|": "qwen2",
}
"""A part of the pattern that splits text before the merges -> llama.cpp's name of that pattern."""


def add_vocabulary(writer: gguf.GGUFWriter, folder: Path, size: int) -> None:
    """Add tokens, merges and special tokens; a model without `tokenizer.json` gets none, as llama.cpp allows."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_bytes()) if path.is_file() else {}
    model = content.get("model") or {}
    if model.get("type") != "BPE":
        writer.add_tokenizer_model("no_vocab")
        return
    tokens, kinds = _tokens(content, size)
    if model.get("byte_fallback"):
        writer.add_tokenizer_model("llama")
        writer.add_token_scores([-float(index) for index in range(size)])
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_split(content))
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    gguf.SpecialVocab(folder, load_merges=True, n_vocab=size).add_to_gguf(writer, quiet=True)


def _tokens(content: Mapping[str, Any], size: int) -> tuple[list[str], list[int]]:
    """Return text and type of every token; ids that no token has are filled up."""
    tokens = [f"[PAD{index}]" for index in range(size)]
    kinds = [int(gguf.TokenType.UNUSED)] * size
    for token, index in content["model"]["vocab"].items():
        if index < size:
            tokens[index] = token
            kinds[index] = int(gguf.TokenType.BYTE if _BYTE.fullmatch(token) else gguf.TokenType.NORMAL)
    for added in content.get("added_tokens") or []:
        if added["id"] < size:
            tokens[added["id"]] = added["content"]
            special = added.get("special")
            kinds[added["id"]] = int(gguf.TokenType.CONTROL if special else gguf.TokenType.USER_DEFINED)
    return tokens, kinds


def _split(content: Mapping[str, Any]) -> str:
    written = json.dumps(content.get("pre_tokenizer"), ensure_ascii=False).replace("\\\\", "\\")
    return next((name for part, name in _SPLITS.items() if part in written), "gpt-2")
