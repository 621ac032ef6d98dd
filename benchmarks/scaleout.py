"""A sharded model quantized by 1, 2 and 4 workers: seconds and throughput, on PostgreSQL + Redis, one thread a worker.

    python benchmarks/scaleout.py [--workers 1 2] [--shards 6] [--hidden 3584]

The model is a Llama of random weights with one decoder block in each file, 32 x hidden^2 bytes. Each worker has a work
folder of its own; they share database, broker and a folder of blobs, as machines with a shared disk do. One worker does
all files in one process. Writes benchmarks/results/scaleout.{json,md}.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

import httpx
import numpy as np
from machine import describe, markdown_table, write_results
from safetensors.numpy import save_file

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from app.db.migrate import upgrade  # noqa: E402
from app.db.session import Database  # noqa: E402
from app.settings import Settings  # noqa: E402
from app.up.firstkey import make_key  # noqa: E402
from nupes_client.client import Client  # noqa: E402
from nupes_client.schemas.jobs import JobStatus  # noqa: E402
from nupes_client.schemas.specs import JobCreate, ModelRef  # noqa: E402
from tests.databases import fresh_database  # noqa: E402
from tests.servers import free_port, postgres_server, redis_server  # noqa: E402

VOCABULARY = 1024
START_S = 120
JOB_S = 1800


@dataclass(frozen=True)
class Row:
    """One run.

    Attributes:
        weights_s: from the claim of the job until all weights are in place: fetching, all files, putting together.
        job_s: from the claim until the artifact is checked and published.
        mb_per_s: input bytes / 1e6 / weights_s.
        files: done by each worker; nothing where one process did all.
    """

    workers: int
    weights_s: float
    job_s: float
    mb_per_s: float
    speedup: float
    files: list[int]


@dataclass(frozen=True)
class Service:
    """A running API, the environment that workers share, and the model in it."""

    url: str
    key: str
    environment: dict[str, str]
    folder: Path
    model_id: str
    model_bytes: int


def write_model(folder: Path, shards: int, hidden: int) -> int:
    """Write the model; returns the bytes of its weights."""
    folder.mkdir()
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": shards,
        "num_attention_heads": hidden // 64,
        "num_key_value_heads": hidden // 64,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": True,
        "dtype": "float16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    random, weight_map = np.random.default_rng(0), {}
    for index in range(shards):
        name = f"model-{index + 1:05}-of-{shards:05}.safetensors"
        shapes = _block(index, hidden) | (_rest(hidden) if index == 0 else {})
        save_file({key: _weights(random, shape) for key, shape in shapes.items()}, folder / name, {"format": "pt"})
        weight_map |= dict.fromkeys(shapes, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _block(index: int, hidden: int) -> dict[str, tuple[int, ...]]:
    prefix = f"model.layers.{index}"
    shapes: dict[str, tuple[int, ...]] = {f"{prefix}.self_attn.{name}_proj.weight": (hidden, hidden) for name in "qkvo"}
    shapes |= {f"{prefix}.mlp.{name}_proj.weight": (4 * hidden, hidden) for name in ("gate", "up")}
    shapes |= {f"{prefix}.{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
    return {**shapes, f"{prefix}.mlp.down_proj.weight": (hidden, 4 * hidden)}


def _rest(hidden: int) -> dict[str, tuple[int, ...]]:
    return {"model.embed_tokens.weight": (VOCABULARY, hidden), "model.norm.weight": (hidden,)}


def _weights(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    values = np.ones(shape, np.float32) if len(shape) == 1 else random.standard_normal(shape, np.float32) * 0.02
    return values.astype(np.float16)


@contextmanager
def process(command: list[str], environment: dict[str, str], log: Path) -> Iterator[None]:
    """Run a program of ours beside us; TERM at the end."""
    with log.open("ab") as output:
        running = subprocess.Popen(
            [sys.executable, "-m", *command], env=environment, cwd=REPOSITORY, stdout=output, stderr=output
        )
    try:
        yield
    finally:
        running.terminate()
        running.wait(60)


def await_that(condition: Callable[[], object], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"{what}: not within {seconds:g} s")
        time.sleep(0.1)


@contextmanager
def service(folder: Path, shards: int, hidden: int) -> Iterator[Service]:
    """Start database, broker and API, and upload the model."""
    size = write_model(folder / "model", shards, hidden)
    with (
        postgres_server() as admin_url,
        redis_server() as broker_url,
        fresh_database(admin_url, "nupes_scaleout") as database_url,
    ):
        upgrade(database_url)
        own = {
            "NUPES_DATABASE_URL": database_url,
            "NUPES_BROKER_URL": broker_url,
            "NUPES_QUEUE_PREFIX": f"scaleout-{secrets.token_hex(4)}.",
            "NUPES_STORAGE_URL": f"file://{folder / 'blobs'}",
            "NUPES_SECRET_KEY": secrets.token_hex(32),
            "NUPES_FAN_OUT_BYTES": "1",
            "NUPES_THREADS": "1",
            "NUPES_POLL_S": "1",
        }
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("NUPES_")}
        environment = {**inherited, **own, "NUPES_DATA_DIR": str(folder / "api")}
        settings = {name.removeprefix("NUPES_").lower(): value for name, value in own.items()}
        key = make_key(Database(database_url), Settings.model_validate({**settings, "data_dir": folder / "api"}))
        port = free_port()
        uvicorn = ["uvicorn", "app.main:create_app", "--factory", "--log-level", "error", "--port", str(port)]
        with process(uvicorn, environment, folder / "api.log"):
            url = f"http://127.0.0.1:{port}"
            await_that(lambda: _answers(url), START_S, "the API")
            with Client(url, key) as client:
                model_id = client.models.from_folder(folder / "model").id
            yield Service(url, key, environment, folder, model_id, size)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/livez").status_code == 200
    except httpx.TransportError:
        return False


def run(service: Service, workers: int, one_worker_s: float | None) -> Row:
    """Quantize the model with so many workers."""
    with ExitStack() as stack:
        for number in range(workers):
            data_dir = service.folder / f"worker-{workers}-{number}"
            environment = {**service.environment, "NUPES_DATA_DIR": str(data_dir)}
            stack.enter_context(process(["worker"], environment, service.folder / "workers.log"))
        client = stack.enter_context(Client(service.url, service.key))
        await_that(lambda: len(list(client.workers.list())) == workers, START_S, f"{workers} workers")
        wish = JobCreate(model=ModelRef(id=service.model_id), evaluation=None, cache=False, name=f"{workers} workers")
        job = client.jobs.wait(client.jobs.create(wish).id, timeout_s=JOB_S)
        if job.status is not JobStatus.SUCCEEDED:
            raise SystemExit(f"the job ended as {job.status}: {job.error}\nsee {service.folder}")
        moments = _moments(client, job.id)
        files = _files_by_worker(service, job.id)
    weights_s = (moments["packaging"] - moments["running"]).total_seconds()
    return Row(
        workers=workers,
        weights_s=weights_s,
        job_s=(moments["succeeded"] - moments["running"]).total_seconds(),
        mb_per_s=service.model_bytes / 1e6 / weights_s,
        speedup=(one_worker_s or weights_s) / weights_s,
        files=files,
    )


def _moments(client: Client, job_id: str) -> dict[str, datetime]:
    """When the job came into each status and phase, by its events."""
    found = {}
    for event in client.jobs.past_events(job_id):
        name = event.data.get("to") or (event.data.get("phase") if event.type == "phase" else None)
        if name:
            found.setdefault(str(name), event.created_at)
    return found


def _files_by_worker(service: Service, job_id: str) -> list[int]:
    headers = {"Authorization": f"Bearer {service.key}"}
    shards = httpx.get(f"{service.url}/v1/jobs/{job_id}/shards", headers=headers).raise_for_status().json()["data"]
    names = [shard["worker"] for shard in shards if shard["worker"]]
    return sorted((names.count(name) for name in set(names)), reverse=True)


def table(rows: list[Row]) -> str:
    names = ("workers", "weights s", "MB/s", "speed-up", "whole job s", "files by each worker")
    cells = [
        (
            str(row.workers),
            f"{row.weights_s:.1f}",
            f"{row.mb_per_s:.1f}",
            f"{row.speedup:.2f}",
            f"{row.job_s:.1f}",
            " + ".join(map(str, row.files)) or "all in one process",
        )
        for row in rows
    ]
    return markdown_table(names, cells)


def main() -> None:
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[each for each in (1, 2, 4) if each <= cores])
    parser.add_argument("--shards", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=3584)
    wish = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name, service(Path(name), wish.shards, wish.hidden) as running:
        for workers in wish.workers:
            one_worker_s = rows[0].weights_s if rows and rows[0].workers == 1 else None
            rows.append(run(running, workers, one_worker_s))
            print(table(rows[-1:]), flush=True)
        size = running.model_bytes
    about = (
        f"{wish.shards} files, {size / 1e6:.0f} MB of float16 weights, 4 bits without data, one thread a worker. "
        "`weights s`: from the claim of the job until all weights are in place."
    )
    data = {"machine": describe(), "model_bytes": size, "shards": wish.shards, "rows": [asdict(row) for row in rows]}
    write_results("scaleout", data, f"# Sharded models by several workers\n\n{about}\n\n{table(rows)}\n")
    print(table(rows))


if __name__ == "__main__":
    main()
