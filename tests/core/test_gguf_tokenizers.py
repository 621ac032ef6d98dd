"""Text becomes the same tokens in llama.cpp as in the tokenizer of the model, or the tokenizer is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

from nupes_core import quantize
from nupes_core.config import QuantizationConfig, WeightConfig
from nupes_core.errors import UnsafeFileError, UnsupportedArchitectureError
from nupes_core.gguf.tokenizer import LLAMA_3, QWEN_2, SPLITS, TEKKEN, read_tokenizer
from nupes_core.report import Progress
from tests.core import llamacpp

SIZE = 640
STORY = (
    "In 1815, 12345 ships sailed; in 1816, 12345678 more. He'll say they've gone, I'd say they're lost. "
    "IT'S 10:30 -- don't!  The price was $1,234.56 (about 20%).\n\n\tTwo   words…\n"
) * 20
TEXTS = (
    "In 12345678 days he'll have 1816 ships.",
    "  two spaces, then\ttabs\t\tand\n\nlines\r\n   ",
    "IT'S they'Ve 10:30am $1,234.56 x=[1,22,333,4444];",
    "naïve café — “quoted” ½ ² ٣٤٥ 漢字かな 한국어 🙂👩‍🚀",
    "trailing space ",
    "HelloWorld iPhoneX HTTPServer's",
    "a" * 40 + "\n" * 5 + "9" * 23,
)


def byte_level(*before: Any, use_regex: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    steps = [*before, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps) if before else steps[0]
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE - 8, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<|end|>"]
    )
    tokenizer.train_from_iterator([STORY], trainer)
    return tokenizer


def split(pattern: str) -> Tokenizer:
    return byte_level(pre_tokenizers.Split(Regex(pattern), "isolated"), use_regex=False)


def by_score(normalizer: Any, pre_tokenizer: Any) -> Tokenizer:
    """As sentencepiece's BPE is converted: pieces with ▁, and a token for each byte."""
    learnt = Tokenizer(models.BPE())
    learnt.pre_tokenizer = pre_tokenizers.Metaspace()
    learnt.train_from_iterator([STORY], trainers.BpeTrainer(vocab_size=SIZE - 300))
    model = json.loads(learnt.to_str())["model"]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *model["vocab"]]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    merges = [tuple(each) for each in model["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


METASPACE = "llama 2, metaspace"
"""Puts no second space before a text that begins with one, which llama.cpp does."""

SPACES = normalizers.Replace(" ", "▁")
TOKENIZERS: Mapping[str, Callable[[], Tokenizer]] = {
    "gpt-2": lambda: byte_level(use_regex=True),
    "smollm": lambda: byte_level(pre_tokenizers.Digits(individual_digits=True), use_regex=True),
    "llama-bpe": lambda: split(LLAMA_3),
    "qwen2": lambda: split(QWEN_2),
    "tekken": lambda: split(TEKKEN),
    "llama 2": lambda: by_score(normalizers.Sequence([normalizers.Prepend("▁"), SPACES]), None),
    METASPACE: lambda: by_score(None, pre_tokenizers.Metaspace(prepend_scheme="first", split=False)),
    "no space before": lambda: by_score(SPACES, None),
}


def model_with(tokenizer: Tokenizer | Mapping[str, Any] | bytes, folder: Path) -> Path:
    shape = {"vocab_size": SIZE, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
    LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=2)).save_pretrained(folder)
    content = tokenizer.to_str().encode() if isinstance(tokenizer, Tokenizer) else tokenizer
    (folder / "tokenizer.json").write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return folder


@pytest.mark.parametrize("name", TOKENIZERS)
def test_llama_cpp_makes_the_same_tokens_of_a_text(name: str, tmp_path: Path) -> None:
    tokenizer = TOKENIZERS[name]()
    src = model_with(tokenizer, tmp_path / "src")
    quantize(src, tmp_path / "out", QuantizationConfig(WeightConfig(bits=8)), formats=["gguf"])
    expected = [tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS]
    found = llamacpp.tokens(tmp_path / "out/model.gguf", TEXTS)
    for text, ours, theirs in zip(TEXTS, expected, found, strict=True):
        if not (name == METASPACE and text.startswith(" ")):
            assert theirs == ours, text


def test_the_tokenizers_differ_on_these_texts() -> None:
    """Else the test above could not tell one name from another."""
    names = [name for name in TOKENIZERS if name in SPLITS.values()]
    made = [[TOKENIZERS[name]().pre_tokenizer.pre_tokenize_str(text) for text in TEXTS] for name in names]
    assert len({json.dumps(each) for each in made}) == len(SPLITS)


def changed(**parts: Any) -> dict[str, Any]:
    return {**json.loads(TOKENIZERS["gpt-2"]().to_str()), **parts}


LOWERCASE = {"type": "Lowercase"}
BY_WORDS = {"type": "Split", "pattern": {"Regex": r"\w+|\W"}, "behavior": "Isolated", "invert": False}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [BY_WORDS, BYTES]}}, "another pattern"),
        ({"pre_tokenizer": BYTES}, "another pattern"),
        ({"pre_tokenizer": {**BYTES, "use_regex": True, "add_prefix_space": True}}, "space before"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "no pattern of its own"),
        ({"pre_tokenizer": None}, "no pattern of its own"),
        ({"normalizer": LOWERCASE}, "changes text"),
        ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, LOWERCASE]}}, "changes text"),
        ({"model": {"type": "Unigram", "vocab": []}}, "of the kind 'Unigram'"),
        ({"model": {"type": "BPE", "end_of_word_suffix": "</w>", "vocab": {}, "merges": []}}, "parts of words"),
        ({"normalizer": LOWERCASE, "model": {"type": "BPE", "byte_fallback": True}}, "changes text"),
        ({"pre_tokenizer": BY_WORDS, "model": {"type": "BPE", "byte_fallback": True}}, "another pattern"),
    ],
)
def test_what_llama_cpp_would_split_in_another_way_is_refused_before_any_work(
    parts: dict[str, Any], words: str, tmp_path: Path
) -> None:
    src = model_with(changed(**parts), tmp_path / "src")
    with pytest.raises(UnsupportedArchitectureError, match=words) as caught:
        quantize(src, tmp_path / "out", QuantizationConfig(), formats=["nupes", "gguf"], progress=_no_work)
    assert "Ask for the format nupes" in str(caught.value.hint)
    assert not (tmp_path / "out").exists()


def _no_work(progress: Progress) -> None:
    pytest.fail(f"it began: {progress}")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b'{"model": 1}',
        json.dumps(changed(model={"type": "BPE"})).encode(),
        b'{"a": ' + b"[" * 100_000,
        b"\xff\xfe",
        json.dumps({"model": {"type": "BPE", "byte_fallback": True}, "normalizer": 1}).encode(),
        json.dumps(changed(added_tokens=[{"id": -1, "content": "x"}])).encode(),
        json.dumps(changed(added_tokens=[{"id": True, "content": "x"}])).encode(),
        json.dumps(changed(model={"type": "BPE", "vocab": {"a": "b"}, "merges": []})).encode(),
        json.dumps(changed(model={"type": "BPE", "vocab": {"a": 0}, "merges": ["a b c"]})).encode(),
        json.dumps(changed(model={"type": "BPE", "vocab": [["a", 0]], "merges": []})).encode(),
        json.dumps(changed(pre_tokenizer={"type": "Sequence"})).encode(),
    ],
    ids=range(14),
)
def test_what_is_no_tokenizer_is_said_so(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(UnsafeFileError, match=r"tokenizer\.json"):
        read_tokenizer(tmp_path)


def test_a_model_without_a_tokenizer_gets_a_file_without_a_vocabulary(tmp_path: Path) -> None:
    src = model_with(b"", tmp_path / "src")
    (src / "tokenizer.json").unlink()
    quantize(src, tmp_path / "out", QuantizationConfig(), formats=["gguf"])
    fields = gguf.GGUFReader(tmp_path / "out/model.gguf").fields
    assert fields["tokenizer.ggml.model"].contents() == "no_vocab"
