"""The vocabulary of a GGUF file: tokens with their kinds and scores, merges, special tokens."""

from __future__ import annotations

import re
from pathlib import Path

import gguf

from nupes_core.gguf.tokenizer import Tokenizer, read_tokenizer

_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_NEVER_MERGED = -1e6
"""Score of tokens that are no merge of others."""


def add_vocabulary(writer: gguf.GGUFWriter, folder: Path, size: int) -> None:
    """Add the tokenizer of a folder; a model without `tokenizer.json` gets none, as llama.cpp allows.

    Raises:
        UnsupportedArchitectureError, UnsafeFileError: as `read_tokenizer`.
    """
    tokenizer = read_tokenizer(folder)
    if tokenizer is None:
        writer.add_tokenizer_model("no_vocab")
        return
    scheme = tokenizer.scheme
    tokens, kinds = _tokens(tokenizer, size)
    writer.add_tokenizer_model(scheme.model)
    if scheme.split is not None:
        writer.add_tokenizer_pre(scheme.split)
    if scheme.space_prefix is not None:
        writer.add_add_space_prefix(scheme.space_prefix)
        writer.add_token_scores(_scores(tokenizer, tokens))
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    gguf.SpecialVocab(folder, load_merges=True, n_vocab=size).add_to_gguf(writer, quiet=True)


def _tokens(tokenizer: Tokenizer, size: int) -> tuple[list[str], list[int]]:
    """Return text and type of every token; ids that no token has are filled up."""
    tokens = [f"[PAD{index}]" for index in range(size)]
    kinds = [int(gguf.TokenType.UNUSED)] * size
    for text, index in tokenizer.tokens.items():
        if index < size:
            tokens[index] = text
            kinds[index] = int(gguf.TokenType.BYTE if _BYTE.fullmatch(text) else gguf.TokenType.NORMAL)
    for index, text, special in tokenizer.added:
        if index < size:
            tokens[index] = text
            kinds[index] = int(gguf.TokenType.CONTROL if special else gguf.TokenType.USER_DEFINED)
    return tokens, kinds


def _scores(tokenizer: Tokenizer, tokens: list[str]) -> list[float]:
    """Return the score of each token: what is merged first scores highest."""
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(tokenizer.merges):
        ranks.setdefault(left + right, rank)
    return [-float(ranks[text]) if text in ranks else _NEVER_MERGED for text in tokens]
