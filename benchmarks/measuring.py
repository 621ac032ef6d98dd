"""What the comparisons on language models share: models with their texts, and one row for each quantized model."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from machine import markdown_table
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from nupes_core import evaluate

REPOSITORY = Path(__file__).resolve().parents[1]
CONTEXT = 256
CALIBRATION = (128, CONTEXT)
"""Samples and tokens of a sample."""


@dataclass(frozen=True)
class Subject:
    """A model, its text and how many tokens of it are evaluated, and another text to calibrate on."""

    name: str
    folder: Path
    text: str
    tokens: int
    calibration: str


@dataclass(frozen=True)
class Row:
    """One method on one model; increase is that of perplexity, seconds those of quantizing with one thread.

    The relative error of weights is None where a method moves scales between layers, which makes it say nothing.
    Processor seconds are None where they were not measured.
    """

    model: str
    bits: int
    method: str
    kind: str
    true_bits: float
    perplexity: float
    increase: float
    kl: float
    top1: float
    relative_mse: float | None
    seconds: float
    processor_seconds: float | None = None


@dataclass(frozen=True)
class Quantized:
    """A quantized model to be measured.

    Attributes:
        parameters: decoded weights and whatever else changed, by parameter name; what is not named is the float one.
        true_bits: all stored bits of the quantized layers / their weights.
        seconds, processor_seconds: what quantizing took.
    """

    parameters: Mapping[str, torch.Tensor]
    true_bits: float
    seconds: float
    processor_seconds: float | None = None


class Recorded(nn.Module):
    """Logits of a model, computed once for each window."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.config = model.config
        self.logits: dict[tuple[int, ...], torch.Tensor] = {}

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Map token ids [1, n] to logits [1, n, vocabulary]."""
        key = tuple(ids.flatten().tolist())
        if key not in self.logits:
            self.logits[key] = self.model(ids).logits
        return self.logits[key]


class Bench:
    """One model with its float weights at hand."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        load = partial(AutoModelForCausalLM.from_pretrained, subject.folder, dtype=torch.float32)
        self.model, self.baseline = load(), Recorded(load())
        self.tokens = tokenize(subject.folder, subject.text)[: subject.tokens]
        self.parameters = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self.weights = {
            name: self.parameters[f"{name}.weight"]
            for name, module in self.model.named_modules()
            if isinstance(module, nn.Linear) and name != "lm_head"
        }
        self.float = evaluate(self.model, self.tokens, context=CONTEXT, baseline=self.baseline)

    def quantize(self, method: Callable[[str, torch.Tensor], Any]) -> Quantized:
        """Quantize each layer by `method` (name, weight) -> (decoded weight, stored bits)."""
        wall, processor = time.perf_counter(), time.process_time()
        found = {layer: method(layer, w) for layer, w in self.weights.items()}
        return Quantized(
            parameters={f"{layer}.weight": decoded for layer, (decoded, _) in found.items()},
            true_bits=sum(size for _, size in found.values()) / sum(w.numel() for w in self.weights.values()),
            seconds=time.perf_counter() - wall,
            processor_seconds=time.process_time() - processor,
        )

    def measure(self, bits: int, name: str, kind: str, method: Callable[[str, torch.Tensor], Any]) -> Row:
        """Quantize each layer as `quantize` does, and evaluate."""
        return self.record(bits, name, kind, self.quantize(method))

    def record(self, bits: int, name: str, kind: str, quantized: Quantized) -> Row:
        """Evaluate a quantized model, and print what was found."""
        self._take(quantized.parameters)
        found = evaluate(self.model, self.tokens, context=CONTEXT, baseline=self.baseline)
        row = Row(
            model=self.subject.name,
            bits=bits,
            method=name,
            kind=kind,
            true_bits=quantized.true_bits,
            perplexity=found.perplexity,
            increase=found.perplexity - self.float.perplexity,
            kl=found.kl or 0.0,
            top1=found.top1_agreement or 0.0,
            relative_mse=self._relative_mse(quantized.parameters),
            seconds=quantized.seconds,
            processor_seconds=quantized.processor_seconds,
        )
        figures = f"{row.true_bits:.3f} bits  perplexity {row.perplexity:9.4f}  KL {row.kl:.5f}"
        print(f"{row.model:15} {bits} {name:44} {figures}", flush=True)
        return row

    @torch.no_grad()
    def _take(self, changed: Mapping[str, torch.Tensor]) -> None:
        for name, parameter in self.model.named_parameters():
            parameter.copy_(changed.get(name, self.parameters[name]))

    def _relative_mse(self, changed: Mapping[str, torch.Tensor]) -> float | None:
        if changed.keys() - {f"{layer}.weight" for layer in self.weights}:
            return None
        noise = sum(float((changed[f"{name}.weight"] - w).double().square().sum()) for name, w in self.weights.items())
        return noise / sum(float(w.double().square().sum()) for w in self.weights.values())


def tokenize(folder: Path, text: str) -> torch.Tensor:
    """Return the token ids [n] of a text, without a BOS: stories260k was measured without one too."""
    ids = AutoTokenizer.from_pretrained(folder)(text, add_special_tokens=False, verbose=False).input_ids
    return torch.tensor(ids)


def calibration_tokens(subject: Subject) -> torch.Tensor:
    """Return the first tokens of the calibration text, [samples, length]."""
    samples, length = CALIBRATION
    return tokenize(subject.folder, subject.calibration)[: samples * length].view(samples, length)


def subjects(assets: Path) -> list[Subject]:
    """Return the models with a text each; needs the folder that holds stories260k and the texts."""
    stories = (assets / "text/tinystories_sample.txt").read_text()
    first, second = stories[: len(stories) // 2], stories[len(stories) // 2 :]
    books = (assets / "text/classic_books.txt").read_text()[:400_000]
    wikitext = (assets / "text/wikitext2_test.txt").read_text()[:400_000]
    valid = (assets / "text/wikitext2_valid.txt").read_text()[:400_000]
    booklm = REPOSITORY / "examples/booklm"
    return [
        Subject("stories260k", assets / "stories260k", first, 20_000, second[:400_000]),
        Subject("booklm", booklm, books, 40_000, valid),
        # no setting was chosen by looking at this text
        Subject("booklm-wikitext", booklm, wikitext, 40_000, valid),
    ]


def row_table(rows: list[Row]) -> str:
    """Lay out one line for each row, in Markdown."""
    names = ("bits", "method", "true bits", "perplexity", "increase", "KL", "top-1", "rel. MSE", "seconds", "processor")
    return markdown_table(
        names,
        [
            (
                str(r.bits),
                r.method,
                f"{r.true_bits:.3f}",
                f"{r.perplexity:.3f}",
                f"{r.increase:.3f}",
                f"{r.kl:.5f}",
                f"{r.top1:.1%}",
                "–" if r.relative_mse is None else f"{r.relative_mse:.5f}",
                f"{r.seconds:.2f}",
                "–" if r.processor_seconds is None else f"{r.processor_seconds:.2f}",
            )
            for r in rows
        ],
    )
