"""Peak memory of data-driven NUPES on a model of TinyLlama's shape (1.1 billion parameters, random weights, bfloat16).

    python benchmarks/bigmodel.py [--blocks 2] [--folder DIR]

Blocks are alike and their memory is given back, so that a few of them show the peak; the process is ended once that
many are committed. Prints JSON; benchmarks/speed.py puts it into its results.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from machine import describe
from memory import Llama, high_water_bytes, make_checkpoint
from safetensors.torch import save_file

from nupes_core.config import CalibrationConfig, QuantizationConfig, TrainingConfig
from nupes_core.plan import plan_folder

MODEL = Llama(hidden=2048, intermediate=5632, key_value=256, layers=22)
CONFIG = QuantizationConfig(
    optimize="data_driven",
    training=TrainingConfig(steps=2, batch_size=4),
    calibration=CalibrationConfig(samples=8, length=64),
)
POLL_SECONDS = 0.2
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def watch(source: Path, tokens: Path, folder: Path, blocks: int) -> dict[str, Any]:
    """Quantize until so many blocks are committed; return the high-water mark of resident memory at each commit."""
    work, training = folder / "work", CONFIG.training
    command = [sys.executable, "-m", "nupes_core", "quantize", str(source), str(folder / "out"), "--quiet", "--workdir"]
    command += [str(work), "--optimize", "data-driven", "--calibration", str(tokens)]
    command += ["--steps", str(training.steps), "--batch-size", str(training.batch_size)]
    command += ["--calibration-samples", str(CONFIG.calibration.samples)]
    command += ["--calibration-length", str(CONFIG.calibration.length)]
    started, peaks = time.perf_counter(), []
    with subprocess.Popen(command, env={**os.environ, **ONE_THREAD}, stdout=subprocess.DEVNULL) as process:
        peak = 0
        while process.poll() is None and len(peaks) < blocks:
            peak = max(peak, high_water_bytes(process.pid))
            done = len(list(work.glob("**/*.safetensors"))) if work.exists() else 0
            peaks += [peak] * (done - len(peaks))
            time.sleep(POLL_SECONDS)
        if process.poll() not in (None, 0):
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
        process.terminate()
    return {"blocks": len(peaks), "peak_bytes": peaks, "seconds": time.perf_counter() - started}


def measure(folder: Path, blocks: int) -> dict[str, Any]:
    """Write the model, quantize its first blocks, and compare with the plan."""
    source, tokens = folder / "model", folder / "tokens.safetensors"
    source.mkdir()
    make_checkpoint(source, MODEL, "BF16")
    shape = (CONFIG.calibration.samples, CONFIG.calibration.length)
    ids = torch.randint(MODEL.vocabulary, shape, generator=torch.Generator().manual_seed(0))
    save_file({"input_ids": ids}, tokens)
    found = watch(source, tokens, folder, min(blocks, MODEL.layers))
    return {
        **found,
        "params": MODEL.params(),
        "float32_bytes": 4 * MODEL.params(),
        "bfloat16_bytes": 2 * MODEL.params(),
        "block_float32_bytes": 4 * MODEL.block_params(),
        "planned_peak_bytes": plan_folder(source, CONFIG).peak_memory_bytes,
        "layers": MODEL.layers,
        "load_average": os.getloadavg()[0],
        "machine": describe(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=2, help="of 22 (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where the model is made (default: the temporary folder)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        print(json.dumps(measure(Path(name), given.blocks)))


if __name__ == "__main__":
    main()
