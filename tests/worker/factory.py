"""Rows, model folders and worker processes for the tests of this package. Everything is real."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from app.db.session import Database
from app.db.tables import Job, Model, ModelFile, Upload
from app.settings import Settings
from app.storage import open_store
from nupes_client.schemas.jobs import JobStatus
from nupes_core.config import QuantizationConfig
from tests.app.jobrows import read_job
from tests.stack import as_environment

REPOSITORY = Path(__file__).resolve().parents[2]
TEXT = "It was the best of times, it was the worst of times. " * 60


def write_tiny_llama(folder: Path, *, layers: int = 2, hidden: int = 64) -> Path:
    """Write a Llama with random weights and the tokenizer of booklm; needs no torch and takes milliseconds."""
    folder.mkdir()
    booklm = REPOSITORY / "examples" / "booklm"
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(booklm / name, folder / name)
    config = json.loads((booklm / "config.json").read_text())
    sizes = {
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "head_dim": hidden // 4,
    }
    config |= sizes | {"dtype": "float32", "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    random = np.random.default_rng(0)
    shapes = _llama_shapes(config)
    save_file({name: _weights(random, shape) for name, shape in shapes.items()}, folder / "model.safetensors")
    return folder


def write_sharded_llama(folder: Path, *, layers: int = 6, hidden: int = 64) -> Path:
    """Write a Llama as `write_tiny_llama` does, one file per decoder block and one for the rest, with their index."""
    write_tiny_llama(folder, layers=layers, hidden=hidden)
    whole = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    files: dict[str, dict[str, np.ndarray]] = {}
    for name, tensor in whole.items():
        block = re.match(r"model\.layers\.(\d+)\.", name)
        files.setdefault(f"model-{int(block[1]) + 1 if block else 0:05}.safetensors", {})[name] = tensor
    for file, tensors in files.items():
        save_file(tensors, folder / file, {"format": "pt"})
    weight_map = {name: file for file, tensors in files.items() for name in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def _llama_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for index in range(config["num_hidden_layers"]):
        base = f"model.layers.{index}"
        shapes |= {f"{base}.self_attn.{name}_proj.weight": (hidden, hidden) for name in "qkvo"}
        shapes |= {f"{base}.mlp.{name}_proj.weight": (inner, hidden) for name in ("gate", "up")}
        shapes[f"{base}.mlp.down_proj.weight"] = (hidden, inner)
        shapes |= {f"{base}.{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
    return {**shapes, "model.norm.weight": (hidden,)}


def _weights(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.ones(shape, np.float32) if len(shape) == 1 else random.normal(0, 0.05, shape).astype(np.float32)


def add_model(database: Database, settings: Settings, tenant_id: str, folder: Path) -> str:
    """Store the files of a model folder and return the id of its row."""
    store = open_store(settings)
    with database.write() as session:
        model = Model(
            tenant_id=tenant_id,
            name=folder.name,
            source={"type": "upload"},
            config={},
            headers={},
            params=0,
            bytes=0,
            findings=[],
        )
        session.add(model)
        session.flush()
        for path in sorted(each for each in folder.iterdir() if each.suffix != ".md" and each.is_file()):
            blob = store.put_file(path)
            session.add(ModelFile(model_id=model.id, path=path.name, size=blob.size, sha256=blob.sha256))
        return model.id


def add_text(database: Database, settings: Settings, tenant_id: str, text: str = TEXT) -> str:
    """Store a text and return the id of its upload."""
    blob = open_store(settings).put_stream([text.encode()])
    with database.write() as session:
        upload = Upload(tenant_id=tenant_id, filename="text.txt", size=blob.size, sha256=blob.sha256)
        session.add(upload)
        session.flush()
        return upload.id


def attempt_orders(**changes: Any) -> dict[str, Any]:
    """What an attempt's children are told, for an uploaded model whose files are in place."""
    orders = {
        "source": {"type": "upload"},
        "files": [],
        "finished": [],
        "text_sha256": None,
        "config": QuantizationConfig().to_dict(),
        "formats": ["nupes"],
        "evaluation": None,
        "calibration": None,
        "origin": {"type": "upload"},
        "seed": 0,
        "min_free_disk_bytes": 0,
    }
    return {**orders, **changes}


def wait_for(condition: Callable[[], Any], timeout_s: float, what: str = "condition") -> Any:
    """Return the first true value of `condition`, asked often."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"{what}: not within {timeout_s} s")


def wait_for_end(database: Database, job_id: str, timeout_s: float = 240) -> Job:
    """Return the job once it has ended."""

    def ended() -> Job | None:
        job = read_job(database, job_id)
        return job if JobStatus(job.status).is_terminal else None

    job: Job = wait_for(ended, timeout_s, f"end of {job_id}, now {read_job(database, job_id).status}")
    return job


@contextmanager
def worker_process(settings: Settings) -> Iterator[subprocess.Popen[bytes]]:
    """Run a real worker; TERM at the end, and it must end by itself."""
    env = {**os.environ, **as_environment(settings)}
    with (settings.data_dir / "worker.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "worker"], env=env, cwd=REPOSITORY, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield process
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """TERM, then wait; KILL and fail when that does not help."""
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise


def worker_log(settings: Settings) -> str:
    """What the worker printed."""
    return (settings.data_dir / "worker.log").read_text(errors="replace")
