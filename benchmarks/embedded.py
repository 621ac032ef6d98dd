"""The embedded service in figures: API start-up and memory, time from POST to claim, on an idle machine.

    python benchmarks/embedded.py [--jobs 20]

Writes benchmarks/results/embedded.{json,md}.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import psutil
from machine import describe, write_results

from nupes_client.client import Client
from nupes_client.schemas.jobs import JobStatus
from nupes_client.schemas.specs import JobCreate, ModelRef

REPOSITORY = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent


def api_start(folder: Path, runs: int = 5) -> dict[str, float]:
    """Seconds from exec to the first 200 of /livez, and resident memory after it, medians over `runs`."""
    seconds, megabytes = [], []
    for run in range(runs):
        port = 18400 + run
        environment = {**os.environ, "NUPES_DATA_DIR": str(folder / "data"), "NUPES_LOG_LEVEL": "WARNING"}
        serve = [str(BIN / "uvicorn"), "app.main:create_app", "--factory", "--log-level", "error"]
        started = time.perf_counter()
        process = subprocess.Popen([*serve, "--port", str(port)], env=environment, cwd=folder)
        try:
            await_answer(f"http://127.0.0.1:{port}/livez")
            seconds.append(time.perf_counter() - started)
            httpx.get(f"http://127.0.0.1:{port}/openapi.json")
            megabytes.append(psutil.Process(process.pid).memory_info().rss / 1e6)
        finally:
            process.terminate()
            process.wait()
    return {"api_start_s": statistics.median(seconds), "api_rss_mb": statistics.median(megabytes)}


def await_answer(url: str) -> None:
    for _ in range(3000):
        try:
            if httpx.get(url).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.01)
    raise SystemExit(f"{url} does not answer")


def dispatch(client: Client, jobs: int) -> dict[str, float]:
    """Milliseconds between the events `queued` and `running` of jobs sent one at a time to an idle worker."""
    model = client.models.from_folder(REPOSITORY / "examples" / "booklm")
    delays = []
    for number in range(jobs):
        wish = JobCreate(model=ModelRef(id=model.id), evaluation=None, name=f"dispatch {number}", cache=False)
        job = client.jobs.create(wish)
        while (state := client.jobs.get(job.id)).status is JobStatus.QUEUED:
            time.sleep(0.05)
        first, *rest = client.jobs.past_events(job.id)
        claimed = next(event for event in rest if event.data.get("to") == "running")
        delays.append((claimed.created_at - first.created_at).total_seconds() * 1000)
        client.jobs.cancel(state.id)
        client.jobs.wait(job.id, timeout_s=60)
        time.sleep(0.3)
    return {
        "dispatch_ms_median": statistics.median(delays),
        "dispatch_ms_p95": sorted(delays)[int(0.95 * (len(delays) - 1))],
        "dispatch_ms_max": max(delays),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=20)
    jobs = parser.parse_args().jobs
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ready = folder / "ready.json"
        up = subprocess.Popen(
            [str(BIN / "nupes"), "up", "--port", "0", "--data-dir", str(folder / "data"), "--ready-file", str(ready)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            while not (ready.exists() and ready.stat().st_size):
                time.sleep(0.05)
            credentials = json.loads(ready.read_text())
            with Client(credentials["url"], credentials["api_key"]) as client:
                figures = dispatch(client, jobs)
        finally:
            up.terminate()
            up.wait()
        figures |= api_start(folder)
    goals = {"api_start_s": 2, "api_rss_mb": 150, "dispatch_ms_p95": 500}
    rows = [f"| {name} | {value:.2f} | {goals.get(name, '')} |" for name, value in figures.items()]
    table = "\n".join(["| figure | measured | goal |", "|---|---|---|", *rows])
    write_results("embedded", {"machine": describe(), "figures": figures}, f"# The embedded service\n\n{table}\n")
    print(table)


if __name__ == "__main__":
    main()
