"""A `tokenizer.json`, as far as llama.cpp is told of it; torch-free.

llama.cpp splits text by code of its own, which a file can only name. A tokenizer that splits in another way would get
other tokens than the model was trained on, and nobody would notice but by worse answers: such a one is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nupes_core.errors import UnsafeFileError, UnsupportedArchitectureError

FILE_NAME = "tokenizer.json"
MAX_BYTES = 256_000_000
"""Those of a quarter of a million tokens have 35 MB."""

_ENGLISH = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPELT_OUT = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
"""The same endings of words; both are in use."""

_WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA_3 = f"{_ENGLISH}{_WORDS}\\p{{N}}{{1,3}}{_REST}"
QWEN_2 = f"{_ENGLISH}{_WORDS}\\p{{N}}{_REST}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASES = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
TEKKEN = rf"{_CASES}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
DIGITS = "digits"

SPLITS: Mapping[tuple[tuple[str, ...], bool], str] = {
    ((), True): "gpt-2",
    ((DIGITS,), True): "smollm",
    ((LLAMA_3,), False): "llama-bpe",
    ((QWEN_2,), False): "qwen2",
    ((TEKKEN,), False): "tekken",
}
"""What splits text before its bytes are looked at, and whether GPT-2's pattern does after that -> llama.cpp's name."""


@dataclass(frozen=True)
class Scheme:
    """How llama.cpp turns text into tokens.

    Attributes:
        model: `gpt2`, merges of bytes in order, or `llama`, merges by score with single bytes as fallback.
        split: of `gpt2`, its name of how text is split first.
        space_prefix: of `llama`, whether a space is put before a text.
    """

    model: str
    split: str | None = None
    space_prefix: bool | None = None


@dataclass(frozen=True)
class Tokenizer:
    """What the file says.

    Attributes:
        tokens: text -> id, without added ones.
        merges: pairs in their order.
        added: (id, text, whether it is special) of tokens that are found before any splitting.
    """

    scheme: Scheme
    tokens: Mapping[str, int]
    merges: Sequence[tuple[str, str]]
    added: Sequence[tuple[int, str, bool]]


def read_tokenizer(folder: Path) -> Tokenizer | None:
    """Read the tokenizer of a model folder; None where it has no `tokenizer.json`.

    Raises:
        UnsupportedArchitectureError: llama.cpp has no name for what it does.
        UnsafeFileError: it is no tokenizer.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        return None
    content = _read(path)
    try:
        return _tokenizer(content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        problem = f"{FILE_NAME} is no tokenizer: {error!r}"
        raise UnsafeFileError(problem, hint="Save it again, or leave it out.") from error


def _read(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise UnsafeFileError(f"{FILE_NAME} has {size} bytes; at most {MAX_BYTES} are read")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UnsafeFileError(f"{FILE_NAME} is not JSON: {error}", hint="Upload it again from its source.") from error
    if not isinstance(content, dict):
        raise UnsafeFileError(f"{FILE_NAME} holds a {type(content).__name__}, not a JSON object")
    return content


def _tokenizer(content: Mapping[str, Any]) -> Tokenizer:
    model = content["model"]
    if model.get("type") != "BPE":
        raise _unknown(f"is of the kind {model.get('type')!r}")
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise _unknown("marks parts of words")
    scheme = _by_score(content) if model.get("byte_fallback") else _by_bytes(content)
    added = content.get("added_tokens") or ()
    return Tokenizer(
        scheme,
        tokens={text: _id(index) for text, index in model["vocab"].items()},
        merges=[_pair(each) for each in model["merges"]],
        added=[(_id(each["id"]), str(each["content"]), bool(each.get("special"))) for each in added],
    )


def _by_bytes(content: Mapping[str, Any]) -> Scheme:
    steps = _steps(content.get("pre_tokenizer"), "pretokenizers")
    if not steps or steps[-1].get("type") != "ByteLevel" or steps[-1].get("add_prefix_space"):
        raise _unknown("splits text by no pattern of its own, or puts a space before it")
    if {each["type"] for each in _steps(content.get("normalizer"), "normalizers")} - {"NFC"}:
        raise _unknown("changes text before it is split")
    name = SPLITS.get((tuple(map(_pattern, steps[:-1])), bool(steps[-1].get("use_regex", True))))
    if name is None:
        raise _unknown("splits text by another pattern")
    return Scheme("gpt2", split=name)


def _pattern(step: Mapping[str, Any]) -> str:
    """Name a step that splits text; those that no scheme has get names that no scheme has."""
    if step["type"] == "Digits":
        return DIGITS if step.get("individual_digits") else "numbers"
    if step["type"] != "Split" or step.get("behavior") != "Isolated" or step.get("invert"):
        return f"{step['type']} of another behaviour"
    return str(step["pattern"].get("Regex")).replace(_SPELT_OUT, _ENGLISH)


def _by_score(content: Mapping[str, Any]) -> Scheme:
    prefix = False
    for step in _steps(content.get("normalizer"), "normalizers"):
        if step["type"] == "Prepend" and step.get("prepend") == "▁":
            prefix = True
        elif step["type"] != "Replace" or step["pattern"] != {"String": " "} or step.get("content") != "▁":
            raise _unknown("changes text before it is split")
    for step in _steps(content.get("pre_tokenizer"), "pretokenizers"):
        # A text that begins with a space gets no other by Metaspace, but does in llama.cpp.
        if step["type"] == "Metaspace" and step.get("replacement") == "▁":
            prefix |= step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never") != "never"
        elif step["type"] != "Split" or step["pattern"] != {"String": " "}:
            raise _unknown("splits text by another pattern")
    return Scheme("llama", space_prefix=prefix)


def _steps(value: Mapping[str, Any] | None, of: str) -> list[Mapping[str, Any]]:
    if value is None:
        return []
    return list(value[of]) if value["type"] == "Sequence" else [value]


def _pair(merge: str | Sequence[str]) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return str(left), str(right)


def _id(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no id of a token")
    return value


def _unknown(what: str) -> UnsupportedArchitectureError:
    return UnsupportedArchitectureError(
        f"format gguf can not tell llama.cpp how this tokenizer works: it {what}",
        hint=f"Ask for the format nupes, dense or compressed-tensors; or leave {FILE_NAME} out of the model: the file "
        "then has no vocabulary, and is given tokens instead of text.",
    )
