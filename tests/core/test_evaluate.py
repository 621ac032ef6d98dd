"""Perplexity and fidelity by protocol `nupes-eval-1`."""

from __future__ import annotations

import hashlib
import math
import shutil
from pathlib import Path

import pytest
import torch

import nupes_core
import nupes_core.evaluation as evaluation
from nupes_core.errors import EvaluationError
from nupes_core.evaluation import evaluate, fidelity
from nupes_core.report import Progress
from nupes_core.sampling import sample_tokens
from tests.core.tiny import QUICK, VOCABULARY, build, save

TEXT = "It was the best of times, it was the worst of times, it was the age of wisdom. " * 12


def _tokens(count: int) -> torch.Tensor:
    return torch.randint(VOCABULARY, (count,), generator=torch.Generator().manual_seed(3))


def test_perplexity_is_that_of_each_window_by_itself() -> None:
    model, tokens = build("llama"), _tokens(50)
    found = evaluate(model, tokens, context=16)
    windows = torch.stack([tokens[0:17], tokens[16:33], tokens[32:49]])
    with torch.no_grad():
        log_p = model(windows[:, :-1]).logits.log_softmax(-1)
    expected = math.exp(-log_p.gather(2, windows[:, 1:, None]).mean())
    assert found.tokens == 48
    assert found.perplexity == pytest.approx(expected, rel=1e-5)
    assert (found.kl, found.top1_agreement, found.baseline_perplexity) == (None, None, None)


def test_kl_is_from_the_float_model_to_the_quantized_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "LOGITS_AT_ONCE", 5 * VOCABULARY)  # chunks that do not divide the window
    float_model, other, tokens = build("llama"), build("llama_tied"), _tokens(33)
    found = evaluate(other, tokens, context=16, baseline=float_model)
    inputs = torch.stack([tokens[0:16], tokens[16:32]])
    with torch.no_grad():
        log_p = float_model(inputs).logits.double().log_softmax(-1)
        log_q = other(inputs).logits.double().log_softmax(-1)
    assert found.kl == pytest.approx(float((log_p.exp() * (log_p - log_q)).sum(-1).mean()), rel=1e-4)
    assert found.top1_agreement == pytest.approx(float((log_p.argmax(-1) == log_q.argmax(-1)).float().mean()))
    assert found.baseline_perplexity == evaluate(float_model, tokens, context=16).perplexity


def test_a_model_agrees_with_itself_fully() -> None:
    model = build("llama")
    found = evaluate(model, _tokens(40), context=8, baseline=model)
    assert found.kl == 0
    assert found.top1_agreement == 1


def test_more_bits_are_closer_to_the_original() -> None:
    kl = {}
    for bits in (2, 4, 8):
        model = build("llama")
        weights = nupes_core.WeightConfig(bits=bits, group_size=32, exponent=QUICK.weights.exponent)
        nupes_core.quantize_model(model, nupes_core.QuantizationConfig(weights))
        found = evaluate(model, _tokens(65), context=32, baseline=build("llama"))
        assert found.bits_per_weight == pytest.approx(bits + 0.5, abs=0.5)
        kl[bits] = found.kl or 0
    assert kl[2] > 5 * kl[4] > 25 * kl[8] > 0


def test_a_text_is_counted_hashed_and_cut(booklm: Path) -> None:
    found = evaluate(booklm, TEXT, context=32, max_tokens=100)
    assert found.tokens == 96
    assert found.text_sha256 == hashlib.sha256(TEXT.encode()).hexdigest()
    assert found.protocol == "nupes-eval-1"
    assert found.source == "text"
    assert found.bits_per_weight == 16


def test_a_text_file_and_its_content_give_the_same(booklm: Path, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text(TEXT, "utf-8")
    by_file = evaluate(booklm, file, context=32, max_tokens=65)
    by_text = evaluate(booklm, TEXT, context=32, max_tokens=65)
    assert (by_file.perplexity, by_file.text_sha256) == (by_text.perplexity, by_text.text_sha256)


def test_fidelity_needs_no_tokenizer(booklm: Path, tmp_path: Path) -> None:
    mute = tmp_path / "mute"
    shutil.copytree(booklm, mute, ignore=shutil.ignore_patterns("tokenizer*"))
    measured = fidelity(mute, mute, tokens=64, context=32)
    assert (measured.tokens, measured.source) == (64, "sampled")
    assert measured.kl == pytest.approx(0, abs=1e-6)


def test_fidelity_needs_no_text_and_repeats_itself(booklm: Path) -> None:
    first, second = (fidelity(booklm, booklm, tokens=64, context=32, seed=5) for _ in range(2))
    assert first.source == "sampled"
    assert first.tokens == 64
    assert first.kl == 0
    assert (first.text_sha256, first.perplexity) == (second.text_sha256, second.perplexity)
    assert fidelity(booklm, booklm, tokens=64, context=32, seed=6).text_sha256 != first.text_sha256


def test_sampled_tokens_follow_the_models_own_distribution() -> None:
    model = build("llama")
    windows = sample_tokens(model, None, 640, 20, seed=0)
    assert windows.shape == (32, 21)
    with torch.no_grad():
        log_p = model(windows[:, :-1]).logits.log_softmax(-1)
    entropy = float(-(log_p.exp() * log_p).sum(-1).mean())
    surprise = float(-log_p.gather(2, windows[:, 1:, None]).mean())
    assert surprise == pytest.approx(entropy, abs=0.1)


def test_progress_counts_windows_and_may_stop_the_run() -> None:
    steps: list[Progress] = []
    evaluate(build("llama"), _tokens(33), context=16, progress=steps.append)
    assert [(step.current, step.total) for step in steps] == [(1, 2), (2, 2)]

    def stop(_: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(build("llama"), _tokens(33), context=16, progress=stop)


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "empty"), (" \n", "empty"), ("Too short.", "one window of context 256 needs 257")],
)
def test_text_that_fills_no_window_is_refused(booklm: Path, text: str, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        evaluate(booklm, text)


def test_a_file_that_is_not_utf8_is_refused(booklm: Path, tmp_path: Path) -> None:
    file = tmp_path / "latin.txt"
    file.write_bytes(b"caf\xe9 " * 1000)
    with pytest.raises(EvaluationError, match=r"not UTF-8.* byte 3"):
        evaluate(booklm, file)


def test_a_missing_file_is_refused(booklm: Path, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="cannot be read"):
        evaluate(booklm, tmp_path / "none.txt")


def test_a_model_without_a_head_is_refused() -> None:
    with pytest.raises(EvaluationError, match="no language-model head"):
        evaluate(build("bert"), _tokens(33), context=16)


def test_a_context_longer_than_the_models_is_refused() -> None:
    with pytest.raises(EvaluationError, match="at most 64"):
        evaluate(build("llama"), _tokens(600), context=128)


def test_a_baseline_of_another_vocabulary_is_refused(booklm: Path) -> None:
    with pytest.raises(EvaluationError, match="4096 logits and its baseline 96"):
        evaluate(booklm, _tokens(33), context=16, baseline=build("llama"))


def test_a_module_and_a_text_need_a_tokenizer() -> None:
    with pytest.raises(EvaluationError, match="tokenizer"):
        evaluate(build("llama"), TEXT, context=16)


def test_a_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = save("llama", tmp_path / "model")
    with pytest.raises(EvaluationError, match="no tokenizer"):
        evaluate(folder, TEXT, context=16)


@pytest.mark.deep
def test_booklm_has_its_published_perplexity(assets: Path, booklm: Path) -> None:
    found = evaluate(booklm, assets / "text" / "classic_books.txt", context=256, max_tokens=40_000)
    assert found.perplexity == pytest.approx(62.29, abs=0.005)


@pytest.mark.deep
def test_stories260k_has_its_published_perplexity(assets: Path) -> None:
    text = (assets / "text" / "tinystories_sample.txt").read_text("utf-8")
    found = evaluate(assets / "stories260k", text[: len(text) // 2], context=256, max_tokens=20_000)
    assert found.perplexity == pytest.approx(4.392, abs=0.0005)
