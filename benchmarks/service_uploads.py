"""Uploads in figures: speed beside plain disk and sha256, and the memory of the API meanwhile; a part of `service.py`.

The sender makes its bytes from memory, so that it costs little beside the service.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
from service_lane import Api, cpu_s

BLOCK = os.urandom(1 << 20)
PIECE_MIB = 32
SENT = ("put", "patch")


def plain(folder: Path, mib: int) -> float:
    """Seconds to hash the bytes and write them to the same disk, made durable."""
    path = folder / "plain"
    started = time.perf_counter()
    digest = hashlib.sha256()
    with path.open("wb", buffering=0) as file:
        for _ in range(mib):
            digest.update(BLOCK)
            file.write(BLOCK)
        os.fsync(file.fileno())
    seconds = time.perf_counter() - started
    path.unlink()
    return seconds


def whole(http: httpx.Client, mib: int) -> float:
    """Seconds of one `PUT …/content`."""
    upload = announce(http, mib)
    started = time.perf_counter()
    headers = {"Content-Length": str(mib << 20)}
    answer = http.put(f"/v1/uploads/{upload}/content", content=blocks(mib), headers=headers)
    assert answer.json()["status"] == "complete", answer.text
    return finished(http, upload, started)


def in_pieces(http: httpx.Client, mib: int) -> float:
    """Seconds of `PATCH` after `PATCH`, each acknowledged when durable."""
    upload = announce(http, mib)
    started = time.perf_counter()
    for at in range(0, mib, PIECE_MIB):
        length = min(PIECE_MIB, mib - at)
        headers = {
            "Tus-Resumable": "1.0.0",
            "Upload-Offset": str(at << 20),
            "Content-Type": "application/offset+octet-stream",
            "Content-Length": str(length << 20),
        }
        answer = http.patch(f"/v1/uploads/{upload}", content=blocks(length), headers=headers)
        assert answer.status_code == 204, answer.text
    return finished(http, upload, started)


def announce(http: httpx.Client, mib: int) -> str:
    return str(http.post("/v1/uploads", json={"filename": "f", "size": mib << 20}).json()["id"])


def blocks(count: int) -> Iterator[bytes]:
    return (BLOCK for _ in range(count))


def finished(http: httpx.Client, upload: str, started: float) -> float:
    """Stop the clock, then delete."""
    seconds = time.perf_counter() - started
    http.delete(f"/v1/uploads/{upload}")
    return seconds


def measure(api: Api, folder: Path, mib: int, rounds: int) -> dict[str, float]:
    """Medians over `rounds`, the three taking turns so that each meets the same machine."""
    with api.http() as http:
        whole(http, 1)
        before = api.peak_mb()
        ways: dict[str, Callable[[], float]] = {
            "plain": lambda: plain(folder, mib),
            "put": lambda: whole(http, mib),
            "patch": lambda: in_pieces(http, mib),
        }
        taken: dict[str, list[float]] = {name: [] for name in ways}
        spent: dict[str, float] = dict.fromkeys(ways, 0.0)
        for _ in range(rounds):
            for name, way in ways.items():
                cpu = cpu_s(api.process)
                taken[name].append(way())
                spent[name] += (cpu_s(api.process) - cpu) / rounds
    speed = {name: mib * 1.048576 / statistics.median(seconds) for name, seconds in taken.items()}
    shares = {f"{name}_of_plain": speed[name] / speed["plain"] for name in SENT}
    megabytes = {f"{name}_mb_s": value for name, value in speed.items()}
    cpu_each = {f"{name}_api_cpu_s": spent[name] for name in SENT}
    memory = {"rss_before_mb": before, "rss_peak_mb": api.peak_mb()}
    return {"mib": mib, **megabytes, **shares, **cpu_each, **memory}
