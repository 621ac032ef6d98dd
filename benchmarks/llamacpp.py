"""What llama.cpp computes from a `gguf` artifact, beside the reader that its figures are measured by.

    NUPES_ASSETS=… python benchmarks/llamacpp.py [--prompts 48]

llama.cpp comes from the package `xllamacpp` of the extra `test`. Windows of a held-out text are given to the float
model, to the artifact loaded by transformers (which decodes to float32) and to llama.cpp (which multiplies with 8-bit
activations), and the distributions of the next token are compared. Writes benchmarks/results/llamacpp.{json,md}.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import gguf
import torch
from machine import describe, markdown_table, write_results
from measuring import Subject, subjects
from transformers import AutoTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import nupes_core
from nupes_core import LayerSelection, QuantizationConfig, WeightConfig, quantize
from nupes_core.gguf.blocktypes import TYPES
from tests.core.llamacpp import next_tokens

WIDTHS = (2, 3, 4, 5, 6, 8)
MODELS = ("stories260k", "booklm")
LENGTH = 96


@dataclass(frozen=True)
class Row:
    """One artifact; divergences in nats, means over the prompts, the largest of one prompt beside the last."""

    model: str
    bits: int
    types: str
    file_bytes: int
    float_to_reader: float
    float_to_llama_cpp: float
    reader_to_llama_cpp: float
    worst: float
    same_top1: int
    prompts: int


def divergence(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Return KL(p‖q) of each row of log-probabilities, in nats."""
    return (p.exp() * (p - q)).sum(-1)


@torch.no_grad()
def expected(folder: Path, prompts: list[list[int]]) -> torch.Tensor:
    """Return log-probabilities [prompts, vocabulary] of the next token, computed in float32."""
    logits = nupes_core.load(folder, dtype=torch.float32)(torch.tensor(prompts)).logits[:, -1]
    found: torch.Tensor = logits.log_softmax(-1)
    return found


def windows(subject: Subject, count: int) -> list[list[int]]:
    """Return windows of the text, evenly spread."""
    tokens = AutoTokenizer.from_pretrained(subject.folder)(subject.text[:200_000])["input_ids"]
    stride = (len(tokens) - LENGTH) // count
    return [tokens[start : start + LENGTH] for start in range(0, stride * count, stride)]


def types_in(file: Path) -> str:
    """Name the types of the quantized tensors in the file."""
    found = {tensor.tensor_type.name for tensor in gguf.GGUFReader(file).tensors}
    return "/".join(sorted(found & set(TYPES)))


def run(subject: Subject, count: int) -> Iterator[Row]:
    prompts = windows(subject, count)
    original = expected(subject.folder, prompts)
    seen = set()
    for bits in WIDTHS:
        with tempfile.TemporaryDirectory() as scratch:
            settings = QuantizationConfig(WeightConfig(bits=bits), LayerSelection(embeddings=True))
            quantize(subject.folder, Path(scratch) / "out", settings, formats=["gguf"])
            file = Path(scratch) / "out/model.gguf"
            if (types := types_in(file)) in seen:
                continue
            seen.add(types)
            read, found = expected(file.parent, prompts), next_tokens(file, prompts)
            apart = divergence(read, found)
            yield Row(
                model=subject.name,
                bits=bits,
                types=types,
                file_bytes=file.stat().st_size,
                float_to_reader=float(divergence(original, read).mean()),
                float_to_llama_cpp=float(divergence(original, found).mean()),
                reader_to_llama_cpp=float(apart.mean()),
                worst=float(apart.max()),
                same_top1=int((read.argmax(-1) == found.argmax(-1)).sum()),
                prompts=count,
            )


def markdown(rows: list[Row]) -> str:
    names = ("model", "bits", "types", "bytes", "float‖reader", "float‖llama.cpp", "reader‖llama.cpp", "worst", "top-1")
    table = markdown_table(
        names,
        [
            (
                row.model,
                str(row.bits),
                row.types,
                f"{row.file_bytes:,}",
                f"{row.float_to_reader:.5f}",
                f"{row.float_to_llama_cpp:.5f}",
                f"{row.reader_to_llama_cpp:.5f}",
                f"{row.worst:.5f}",
                f"{row.same_top1}/{row.prompts}",
            )
            for row in rows
        ],
    )
    return HEAD.format(prompts=rows[0].prompts, length=LENGTH, table=table) + NOTES


HEAD = """# In llama.cpp

What llama.cpp itself expects as the next token, beside the reader that the figures of a job are measured by
(transformers', decoded to float32). {prompts} windows of {length} tokens of held-out text, embeddings quantized too.
KL in nats, means over the windows; *worst*: reader‖llama.cpp of one window; *top-1*: windows whose likeliest token is
the same.

{table}
"""

NOTES = """
## Reading the figures

llama.cpp multiplies blocks of weights with activations that it rounds to 8 bits, the reader with floats; all else is
the same: tokens, positions, order of rows. What lies between the two is small beside what the weights lose in few bits,
so a job's KL tells what users of llama.cpp get. In 8 bits it is most of what is lost. Wishes whose types are those of a
row above have no row of their own.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=48)
    arguments = parser.parse_args()
    if "NUPES_ASSETS" not in os.environ:
        parser.error("set NUPES_ASSETS to the folder that holds stories260k and the texts")
    rows: list[Row] = []
    for subject in subjects(Path(os.environ["NUPES_ASSETS"])):
        if subject.name in MODELS:
            for row in run(subject, arguments.prompts):
                rows.append(row)
                print(row, flush=True)
    write_results("llamacpp", {"machine": describe(), "rows": [asdict(row) for row in rows]}, markdown(rows))


if __name__ == "__main__":
    main()
