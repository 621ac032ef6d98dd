"""Speed and memory of quantization on one thread: data-free, data-driven stage by stage, and beside AutoRound and GPTQ.

    NUPES_ASSETS=… .venv/bin/python benchmarks/speed.py [--parts datafree driven memory] [--bits 4] [--blocks 2]

The peers' seconds are those kept in .bench-cache when benchmarks/quality.py ran them (AutoRound at 200 steps); they are
not run again. Parts measured now replace those in benchmarks/results/speed.{json,md}.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bigmodel
import torch
from calibrated_peers import CACHE
from machine import RESULTS, describe, write_results
from measuring import REPOSITORY, calibration_tokens, markdown_table, subjects
from quality import QUICK_STEPS, nupes_configs
from safetensors.torch import save_file

from nupes_core.plan import plan_folder

BOOKLM = REPOSITORY / "examples/booklm"
PEERS = ("AutoRound", "GPTQ")
METHOD = f"NUPES, data-driven, {QUICK_STEPS} steps"
GOAL = 3.0
"""Times faster than AutoRound, at lower perplexity."""
GIB = 2**30


def data_free(_given: argparse.Namespace) -> dict[str, Any]:
    """Return millions of weights a second by method, of processor time."""
    from speed_datafree import speeds

    return {"million_per_second": speeds(), "machine": describe()}


def driven(given: argparse.Namespace) -> dict[str, Any]:
    """Quantize booklm on data in a process with a clock on each stage, as benchmarks/quality.py does."""
    config = nupes_configs(given.bits)[METHOD][1]
    subject = next(each for each in subjects(Path(os.environ["NUPES_ASSETS"])) if each.name == "booklm")
    with tempfile.TemporaryDirectory() as name:
        tokens = Path(name) / "tokens.safetensors"
        save_file({"tokens": calibration_tokens(subject).contiguous()}, tokens)
        command = [sys.executable, str(Path(__file__).with_name("stages.py")), str(BOOKLM), str(Path(name) / "out")]
        command += [json.dumps(config.to_dict()), "--tokens", str(tokens)]
        environment = {**os.environ, **bigmodel.ONE_THREAD}
        load = os.getloadavg()[0]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    plan = plan_folder(BOOKLM, config)
    return {
        **json.loads(done.stdout),
        "bits": given.bits,
        "steps": config.training.steps,
        "planned_seconds": plan.seconds,
        "planned_peak_bytes": plan.peak_memory_bytes,
        "load_average": load,
        "machine": describe(),
    }


def memory(given: argparse.Namespace) -> dict[str, Any]:
    """Measure the peak on a model of 1.1 billion parameters."""
    with tempfile.TemporaryDirectory() as name:
        return bigmodel.measure(Path(name), given.blocks)


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "datafree": data_free,
    "driven": driven,
    "memory": memory,
}


def kept_peers(bits: int) -> dict[str, dict[str, float]]:
    """Return the seconds of peers on booklm from the cache of results."""
    found: dict[str, dict[str, float]] = {}
    for name in PEERS:
        for path in CACHE.glob(f"booklm-{name.lower()}-{bits}bit-g64-*.json"):
            notes = json.loads(path.read_text())
            found[name] = {key: notes[key] for key in ("seconds", "processor_seconds")}
    return found


def perplexities(bits: int) -> dict[str, float]:
    """Return perplexity on booklm by method, as benchmarks/quality.py measured it."""
    rows = json.loads((RESULTS / "quality.json").read_text())["rows"]
    return {row["method"]: row["perplexity"] for row in rows if row["model"] == "booklm" and row["bits"] == bits}


def driven_text(figures: dict[str, Any]) -> str:
    """Return the stages, and the comparison with peers."""
    total = figures["processor_seconds"]
    parts = sorted(figures["processor"].items(), key=lambda item: -item[1])
    stages = markdown_table(
        ("stage", "processor s", "share", "wall s"),
        [(name, f"{used:.1f}", f"{used / total:.0%}", f"{figures['wall'][name]:.1f}") for name, used in parts],
    )
    bits, millions = figures["bits"], figures["quantized_params"] / 1e6
    quality = perplexities(bits)
    ours = {METHOD: {"seconds": figures["wall_seconds"], "processor_seconds": total}}
    peers = kept_peers(bits)
    rows = [
        (
            name,
            f"{used['processor_seconds']:.0f}",
            f"{used['processor_seconds'] / millions:.1f}",
            f"{used['seconds']:.0f}",
            f"{quality[name]:.3f}" if name in quality else "–",
        )
        for name, used in {**ours, **peers}.items()
    ]
    table = markdown_table(("method", "processor s", "per million weights", "wall s", "perplexity"), rows)
    return f"""
## Data-driven: booklm, {millions:.1f} million weights, {bits} bits, {figures["steps"]} steps, 128 x 256 tokens

{table}

{verdict(total, peers, quality)}

Peers' seconds were kept when benchmarks/quality.py ran them, AutoRound at 200 steps. Other work shared the cores then
and now (load {figures["load_average"]:.0f}): wall time says little, and processor time is inflated too. NUPES counts
reading, searching and writing; peers leave loading out. Planned: {figures["planned_seconds"]:.0f} s and \
{figures["planned_peak_bytes"] / GIB:.2f} GiB; measured peak {figures["peak_bytes"] / GIB:.2f} GiB.

{stages}
"""


def verdict(processor: float, peers: dict[str, dict[str, float]], quality: dict[str, float]) -> str:
    """Say whether the goal beside AutoRound is met."""
    if "AutoRound" not in peers:
        return "AutoRound has no kept result."
    times = peers["AutoRound"]["processor_seconds"] / processor
    both = METHOD in quality and "AutoRound" in quality
    better = both and quality[METHOD] < quality["AutoRound"]
    shown = "perplexity not compared yet" if not both else ("lower perplexity" if better else "no lower perplexity")
    met = "met" if times >= GOAL and better else "not met"
    return f"{times:.1f} times faster than AutoRound, {shown}; goal ({GOAL:.0f} times, lower perplexity) {met}."


def memory_text(figures: dict[str, Any]) -> str:
    """Return the peak beside the sizes of the model."""
    sizes = {
        "peak resident memory": max(figures["peak_bytes"]),
        "planned": figures["planned_peak_bytes"],
        "one block, float32": figures["block_float32_bytes"],
        "model, float32": figures["float32_bytes"],
        "model, bfloat16": figures["bfloat16_bytes"],
    }
    table = markdown_table(("", "GiB"), [(name, f"{size / GIB:.2f}") for name, size in sizes.items()])
    calibration, training = bigmodel.CONFIG.calibration, bigmodel.CONFIG.training
    peaks = ", ".join(f"{peak / GIB:.2f}" for peak in figures["peak_bytes"])
    return f"""
## Peak memory of a run on data: TinyLlama's shape, {figures["params"] / 1e9:.1f} billion parameters

{calibration.samples} x {calibration.length} tokens, {training.steps} steps, group 64. {figures["blocks"]} of
{figures["layers"]} blocks were run; the mark after each (GiB): {peaks}.

{table}
"""


def data_free_text(figures: dict[str, Any]) -> str:
    """Return the rates."""
    rows = [(name, f"{rate:.1f}") for name, rate in figures["million_per_second"].items()]
    table = markdown_table(("method", "million weights a second of processor time"), rows)
    return f"\n## Data-free: a [2048, 4096] matrix, 4 bits\n\n{table}\n"


TEXTS: dict[str, Callable[[dict[str, Any]], str]] = {
    "datafree": data_free_text,
    "driven": driven_text,
    "memory": memory_text,
}


def write(part: str, figures: dict[str, Any]) -> str:
    """Put a part into the results; return the whole text."""
    path = RESULTS / "speed.json"
    stored = json.loads(path.read_text()) if path.exists() else {}
    data = {**stored, part: figures, "machine": describe()}
    text = "# Speed and memory of quantization, one thread\n" + "".join(
        TEXTS[name](data[name]) + f"\nCommit {data[name]['machine']['commit']}.\n" for name in PARTS if name in data
    )
    write_results("speed", data, text)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--bits", type=int, choices=(2, 3, 4), default=4, help="of the data-driven run")
    parser.add_argument("--blocks", type=int, default=2, help="of the large model")
    given = parser.parse_args()
    if "driven" in given.parts and "NUPES_ASSETS" not in os.environ:
        parser.error("set NUPES_ASSETS to the folder that holds stories260k and the texts")
    torch.set_num_threads(1)
    text = ""
    for part in given.parts:
        text = write(part, PARTS[part](given))
    print(text)


if __name__ == "__main__":
    main()
