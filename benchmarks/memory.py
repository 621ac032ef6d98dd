"""Peak memory of a quantization: a synthetic sharded bf16 checkpoint through `python -m nupes_core quantize`.

    python benchmarks/memory.py [--layers 24] [--dtype BF16] [--folder DIR]

The default has 2.1 billion parameters (4.1 GB) and is removed afterwards. Writes benchmarks/results/memory.{json,md}.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from machine import describe, write_results

from nupes_core.checkpoint import TORCH_DTYPES, ShardWriter
from nupes_core.config import QuantizationConfig
from nupes_core.header import TensorSpec, build_header
from nupes_core.plan import plan_folder

LAYERS_PER_SHARD = 4
BLOCK_WEIGHTS = 1 << 23
GOAL_GIB = 1.5
POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Llama:
    """Sizes of a Llama; `key_value` is the width of keys and values."""

    hidden: int
    intermediate: int
    key_value: int
    layers: int
    vocabulary: int = 32000
    head: int = 64

    def layer_shapes(self, index: int) -> dict[str, tuple[int, ...]]:
        """Return the tensors of one decoder layer."""
        prefix = f"model.layers.{index}"
        widths = {"q": self.hidden, "k": self.key_value, "v": self.key_value, "o": self.hidden}
        attention = {f"{prefix}.self_attn.{name}_proj.weight": (rows, self.hidden) for name, rows in widths.items()}
        up = {f"{prefix}.mlp.{name}_proj.weight": (self.intermediate, self.hidden) for name in ("gate", "up")}
        down = {f"{prefix}.mlp.down_proj.weight": (self.hidden, self.intermediate)}
        norms = {f"{prefix}.{name}_layernorm.weight": (self.hidden,) for name in ("input", "post_attention")}
        return {**attention, **up, **down, **norms}

    def tables(self) -> dict[str, tuple[int, ...]]:
        """Return the tensors outside the layers."""
        table = (self.vocabulary, self.hidden)
        return {"model.embed_tokens.weight": table, "lm_head.weight": table, "model.norm.weight": (self.hidden,)}

    def block_params(self) -> int:
        """Return the parameters of one decoder layer."""
        return sum(prod(shape) for shape in self.layer_shapes(0).values())

    def params(self) -> int:
        """Return the parameters of the model."""
        return self.layers * self.block_params() + sum(prod(shape) for shape in self.tables().values())

    def config(self) -> dict[str, Any]:
        """Return `config.json`."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.hidden // self.head,
            "num_key_value_heads": self.key_value // self.head,
            "head_dim": self.head,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": False,
        }


def make_checkpoint(folder: Path, model: Llama, dtype: str) -> None:
    """Write the checkpoint; every tensor is cut out of one block of Gaussian weights, which is cheap."""
    shards = [model.tables()]
    for first in range(0, model.layers, LAYERS_PER_SHARD):
        indices = range(first, min(first + LAYERS_PER_SHARD, model.layers))
        shards.append({name: shape for index in indices for name, shape in model.layer_shapes(index).items()})
    block = torch.randn(BLOCK_WEIGHTS, generator=torch.Generator().manual_seed(0)).mul_(0.02).to(TORCH_DTYPES[dtype])
    weight_map = {}
    for number, shapes in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_shard(folder / file, shapes, block, dtype)
        weight_map |= dict.fromkeys(shapes, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(model.config()))


def write_shard(path: Path, shapes: dict[str, tuple[int, ...]], block: torch.Tensor, dtype: str) -> None:
    """Write one file of the checkpoint."""
    specs = [TensorSpec(name, dtype, shape) for name, shape in shapes.items()]
    with ShardWriter(path, *build_header(specs, {"format": "pt"})) as writer:
        for number, spec in enumerate(specs):
            start = 0
            while start < spec.nbytes:
                shift = 4096 * number
                part = block[shift : shift + (spec.nbytes - start) // block.element_size()]
                writer.write(spec.name, part, start)
                start += part.nbytes


def run(command: list[str]) -> dict[str, Any]:
    """Run a command; return its wall seconds and the high-water mark of its resident memory.

    The kernel's own mark (VmHWM) counts from exec on, unlike ru_maxrss, which includes the parent at the fork.
    """
    started = time.perf_counter()
    with tempfile.TemporaryFile() as output, subprocess.Popen(command, stdout=output) as process:
        peak = 0
        while process.poll() is None:
            peak = max(peak, high_water_bytes(process.pid))
            time.sleep(POLL_SECONDS)
        output.seek(0)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
        return {"seconds": time.perf_counter() - started, "peak_bytes": peak, "report": json.loads(output.read())}


def high_water_bytes(pid: int | str) -> int:
    """Return VmHWM of a process (or "self"), 0 when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def measure(source: Path, target: Path) -> dict[str, Any]:
    """Quantize and compare with the plan."""
    plan = plan_folder(source, QuantizationConfig())
    load = os.getloadavg()[0]
    done = run([sys.executable, "-m", "nupes_core", "quantize", str(source), str(target), "--json", "--quiet"])
    report = done["report"]
    return {
        "load_average": load,
        "params": plan.params,
        "quantized_params": plan.quantized_params,
        "checkpoint_bytes": plan.bytes_before,
        "artifact_bytes": report["bytes_after"],
        "artifact_bytes_planned": plan.artifact_bytes,
        "bits_per_weight": report["bits_per_weight"],
        "peak_rss_gib": done["peak_bytes"] / 2**30,
        "peak_rss_gib_planned": plan.peak_memory_bytes / 2**30,
        "wall_seconds": done["seconds"],
        "wall_seconds_planned": plan.seconds,
        "million_params_per_second": plan.quantized_params / report["seconds"] / 1e6,
    }


def markdown(figures: dict[str, Any], dtype: str) -> str:
    """Return the table for people."""
    goals = {"peak_rss_gib": f"< {GOAL_GIB}"}
    shown = {key: f"{value:,}" if isinstance(value, int) else f"{value:.2f}" for key, value in figures.items()}
    rows = [f"| {key} | {value} | {goals.get(key, '')} |" for key, value in shown.items()]
    table = "\n".join(["| figure | measured | goal |", "|---|---|---|", *rows])
    title = f"# Memory and time of a {figures['params'] / 1e9:.1f}-billion-parameter {dtype} checkpoint"
    load = "Other work ran on the machine." if figures["load_average"] > 1 else "The machine was otherwise idle."
    return f"{title}\n\n4 bits, group 64, data-free. {load}\n\n{table}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--dtype", choices=["BF16", "F16", "F32"], default="BF16")
    parser.add_argument("--folder", type=Path, help="where the checkpoint is made (default: the temporary folder)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        model = Llama(hidden=2560, intermediate=6912, key_value=2560, layers=arguments.layers)
        need = 4 * 2 * model.params()
        if shutil.disk_usage(name).free < need:
            raise SystemExit(f"needs {need / 1e9:.0f} GB free in {name}; give another place with --folder")
        source = Path(name) / "checkpoint"
        source.mkdir()
        make_checkpoint(source, model, arguments.dtype)
        figures = measure(source, Path(name) / "artifact")
    text = markdown(figures, arguments.dtype)
    write_results("memory", {"machine": describe(), "figures": figures}, text)
    print(text)


if __name__ == "__main__":
    main()
