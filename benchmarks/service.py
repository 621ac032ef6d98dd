"""The service in figures: submits, polls, event streams, lists, dispatch and uploads, on both databases and brokers.

    python benchmarks/service.py [--parts submits polls watchers lists dispatch uploads] [--lanes sqlite postgresql]
                                 [--processes 1 2] [--seconds 5] [--jobs 100000] [--mib 256] [--folder DIR]

Writes benchmarks/results/service.{json,md}; parts that are not asked for keep their kept figures.
Beside the clock, which a busy machine slows, stand the processor milliseconds of API, database and client a request.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedded import dispatch
from machine import RESULTS, describe, write_results
from service_lane import BROKERS, LANES, REPOSITORY, Api, cpu_s, fill, open_lane, past_id, running, running_api
from service_uploads import measure as measure_uploads

from nupes_client.schemas.jobs import JobStatus
from nupes_client.schemas.specs import JobCreate, ModelRef

Figures = dict[str, Any]

LOAD = Path(__file__).with_name("service_load.py")
BOOKLM = REPOSITORY / "examples" / "booklm"
CONNECTIONS = 16
POLLED_JOBS = 50
WATCHERS = 500
EVENTS = 10
PAGES = 200
DISPATCHED = 20


def submits(api: Api, wish: argparse.Namespace) -> Figures:
    """Jobs of a small model, without and with an `Idempotency-Key`, as `nupes quantize` sends one."""
    body = JobCreate(model=ModelRef(id=_model(api)), evaluation=None).model_dump_json(exclude_unset=True).encode()
    plain = api.request("POST", "/v1/jobs", body)
    keyed = [api.request("POST", "/v1/jobs", body, idempotency_key=os.urandom(16).hex()) for _ in range(5000)]
    _requests(api, [plain], seconds=1, expect=202)
    return {
        "submit": _requests(api, [plain], seconds=wish.seconds, expect=202),
        "submit_with_key": _requests(api, keyed, seconds=wish.seconds, expect=202, count=len(keyed)),
    }


def polls(api: Api, wish: argparse.Namespace) -> Figures:
    """`GET /v1/jobs/ID` of jobs that have not changed, and of jobs that the client sees for the first time."""
    ids = _jobs(api, POLLED_JOBS)
    known = [api.request("GET", f"/v1/jobs/{job_id}", if_none_match='"1"') for job_id in ids]
    new = [api.request("GET", f"/v1/jobs/{job_id}") for job_id in ids]
    _requests(api, known, seconds=1, expect=304)
    return {
        "poll_304": _requests(api, known, seconds=wish.seconds, expect=304),
        "poll_200": _requests(api, new, seconds=wish.seconds, expect=200),
    }


def watchers(api: Api, wish: argparse.Namespace) -> Figures:
    """Event streams of one job: from a change to the last stream that has its event, and what a stream weighs."""
    job_id = _jobs(api, 1)[0]
    request = api.request("GET", f"/v1/jobs/{job_id}/events/stream")
    before = api.rss_mb()
    load = _start(
        {"kind": "watch", "port": api.port, "connections": WATCHERS, "request": request, "first": 1, "last": EVENTS + 1}
    )
    assert load.stdout
    connected = json.loads(load.stdout.readline())["connected_s"]
    after = api.rss_mb()
    started_cpu, to_all, to_half = cpu_s(api.process), [], []
    with api.http() as http:
        for number in range(EVENTS):
            sent = time.monotonic()
            change = {"name": f"event {number}"}
            http.patch(f"/v1/jobs/{job_id}", json=change, headers={"If-Match": f'"{number + 1}"'}).raise_for_status()
            arrived = json.loads(load.stdout.readline())
            to_all.append(arrived["all"] - sent)
            to_half.append(arrived["median"] - sent)
    spent = cpu_s(api.process) - started_cpu
    load.communicate(timeout=30)
    return {
        "watchers": {
            "streams": WATCHERS,
            "connect_s": connected,
            "to_all_ms_median": 1000 * statistics.median(to_all),
            "to_all_ms_max": 1000 * max(to_all),
            "to_half_ms_median": 1000 * statistics.median(to_half),
            "api_cpu_ms_per_event": 1000 * spent / EVENTS,
            "rss_mb": after,
            "kb_per_stream": 1000 * (after - before) / WATCHERS,
        }
    }


def lists(api: Api, wish: argparse.Namespace) -> Figures:
    """Pages of 50 of `--jobs` jobs, one request at a time."""
    started = time.monotonic()
    fill(api.lane, _jobs(api, 1)[0], wish.jobs)
    filled = time.monotonic() - started
    figures = {}
    for name, query in _queries(wish.jobs).items():
        request = api.request("GET", f"/v1/jobs?{query}")
        _requests(api, [request], seconds=10, expect=200, connections=1, count=5)
        figures[name] = _requests(api, [request], seconds=10, expect=200, connections=1, count=PAGES)
    return {"list": {"jobs": wish.jobs, "fill_s": filled, "pages": figures}}


def _queries(jobs: int) -> dict[str, str]:
    middle = base64.urlsafe_b64encode(f"1:{past_id(jobs // 2)}".encode()).decode().rstrip("=")
    return {
        "first page": "",
        "middle page": f"cursor={middle}",
        "status, one of twenty": "status=failed",
        "status, none": "status=running",
        "label, one of twenty": "label.team=team-3",
        "label, one job": "label.commit=7",
        "label, none": "label.commit=none",
        "label and status": "label.team=team-3&status=failed",
        "name, none": "name=none",
        "verdict, none": "verdict=failed",
    }


def dispatches(api: Api, wish: argparse.Namespace) -> Figures:
    """From submit to claim by an idle worker, one job at a time."""
    with api.client() as client:
        for left in client.jobs.list(status=JobStatus.QUEUED):  # by other parts
            client.jobs.cancel(left.id)
    with running(api.lane, [sys.executable, "-m", "worker"]), api.client() as client, api.http() as http:
        while not http.get("/v1/workers").json()["data"]:
            time.sleep(0.2)
        return {"dispatch": {"broker": BROKERS[api.lane.name], **dispatch(client, DISPATCHED)}}


def uploads(api: Api, wish: argparse.Namespace) -> Figures:
    """Bytes to disk, beside the same bytes hashed and written by a plain loop in the same rounds."""
    return {"upload": measure_uploads(api, api.lane.settings.data_dir, wish.mib, rounds=3)}


PARTS: dict[str, Callable[[Api, argparse.Namespace], Figures]] = {
    "submits": submits,
    "polls": polls,
    "watchers": watchers,
    "dispatch": dispatches,
    "uploads": uploads,
    "lists": lists,
}
SCALED = frozenset({"submits", "polls"})
"""Measured for each number of API processes; the others with one."""


@dataclass(frozen=True)
class Goal:
    """What was wanted on a lane: `words` with the figure in place of `{}`, and when it is met."""

    lane: str
    words: str
    figure: Callable[[Figures], float]
    met: Callable[[float], bool]


def _best(prefix: str) -> Callable[[Figures], float]:
    return lambda figures: max(
        value["per_s"]
        for name, value in figures.items()
        if name.startswith(f"{prefix}_") and name.endswith("p") and "key" not in name
    )


def _worst_page(figures: Figures) -> float:
    return max(page["p99_ms"] for page in figures["list"]["pages"].values())


GOALS = (
    Goal("postgresql", "{:.0f} submits/s, 150 wanted", _best("submit"), lambda rate: rate >= 150),
    Goal("postgresql", "{:.0f} polls/s, 1000 wanted", _best("poll_304"), lambda rate: rate >= 1000),
    *(
        goal
        for lane in LANES
        for goal in (
            Goal(lane, "{:.0f} ms p99 of the slowest list, under 50 wanted", _worst_page, lambda ms: ms < 50),
            Goal(lane, "{:.0%} of plain speed, 80 % wanted", lambda f: f["upload"]["put_of_plain"], lambda x: x >= 0.8),
            Goal(
                lane,
                "{:.0f} MB in an upload, under 80 wanted",
                lambda f: f["upload"]["rss_peak_mb"],
                lambda mb: mb < 80,
            ),
        )
    ),
)


def verdicts(lanes: dict[str, Figures]) -> list[dict[str, Any]]:
    """Each goal whose figures are there, and whether it is met."""
    found = []
    for goal in GOALS:
        with suppress(KeyError, ValueError):  # a part that was never measured
            value = goal.figure(lanes[goal.lane])
            found.append({"lane": goal.lane, "goal": goal.words.format(value), "value": value, "met": goal.met(value)})
    return found


def markdown(lanes: dict[str, Figures]) -> str:
    """Goals first, then a table for each lane."""
    lines = ["# The service", "", "| database | goal | |", "|---|---|---|"]
    lines += [f"| {each['lane']} | {each['goal']} | {'met' if each['met'] else 'MISSED'} |" for each in verdicts(lanes)]
    for lane, figures in lanes.items():
        lines += ["", f"## {lane}, {BROKERS[lane]}", "", RATES, "|---|---|---|---|---|---|---|---|"]
        pages = {f"list: {name}": page for name, page in figures.get("list", {}).get("pages", {}).items()}
        rates = {**{name: value for name, value in figures.items() if "per_s" in value}, **pages}
        lines += [_rate_line(name, value) for name, value in rates.items()]
        others = {name: value for name, value in figures.items() if "per_s" not in value and name != "list"}
        lines += ["", *(f"- {name}: {_spelled(value)}" for name, value in others.items())]
    return "\n".join(lines)


RATES = "| request | per s | p50 ms | p99 ms | API CPU ms | database CPU ms | client CPU ms | load average |"


def _rate_line(name: str, value: Figures) -> str:
    figures = ("per_s", "p50_ms", "p99_ms", "api_cpu_ms", "database_cpu_ms", "client_cpu_ms", "load_average_before")
    return f"| {name} | " + " | ".join(f"{value[figure]:.2f}" if figure in value else "" for figure in figures) + " |"


def _spelled(value: Figures) -> str:
    return ", ".join(
        f"{name} {item:.3g}" if isinstance(item, float) else f"{name} {item}" for name, item in value.items()
    )


def _model(api: Api) -> str:
    with api.client() as client:
        return client.models.from_folder(BOOKLM).id


def _jobs(api: Api, count: int) -> list[str]:
    with api.client() as client:
        model = ModelRef(id=_model(api))
        return [client.jobs.create(JobCreate(model=model, evaluation=None)).id for _ in range(count)]


def _start(wish: Figures) -> subprocess.Popen[str]:
    load = subprocess.Popen([sys.executable, str(LOAD)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert load.stdin
    load.stdin.write(json.dumps(wish))
    load.stdin.close()
    load.stdin = None
    return load


def _requests(
    api: Api,
    requests: Sequence[str],
    *,
    seconds: float,
    expect: int,
    connections: int = CONNECTIONS,
    count: int | None = None,
) -> Figures:
    """Requests per second, latencies, and processor milliseconds a request of all who took part."""
    wish = {"kind": "requests", "port": api.port, "connections": connections, "seconds": seconds, "count": count}
    api_before, server_before = cpu_s(api.process), api.lane.server_cpu_s()
    answer = json.loads(_start({**wish, "requests": list(requests)}).communicate(timeout=seconds + 60)[0])
    if list(answer["statuses"]) != [str(expect)]:
        raise SystemExit(f"expected {expect} alone, got {answer['statuses']}: {answer['samples']}")
    taken = sorted(answer["latencies_s"])
    each = 1000 / len(taken)
    return {
        "requests": len(taken),
        "per_s": len(taken) / answer["wall_s"],
        "p50_ms": 1000 * statistics.median(taken),
        "p99_ms": 1000 * taken[int(0.99 * (len(taken) - 1))],
        "api_cpu_ms": each * (cpu_s(api.process) - api_before),
        "database_cpu_ms": each * (api.lane.server_cpu_s() - server_before),
        "client_cpu_ms": each * answer["cpu_s"],
    }


def run_lane(name: str, folder: Path, wish: argparse.Namespace) -> Figures:
    """All parts asked for, on one database; a list comes last, for its jobs stay."""
    figures: Figures = {}
    commit = describe()["commit"]
    with open_lane(name, folder) as lane:
        for part, measure in PARTS.items():
            if part not in wish.parts:
                continue
            for processes in wish.processes if part in SCALED else [1]:
                with running_api(lane, processes) as api:
                    load_before = os.getloadavg()[0]
                    found = measure(api, wish)
                for figure in found.values():
                    figure |= {"load_average_before": load_before, "commit": commit}
                figures |= {f"{key}_{processes}p" if part in SCALED else key: value for key, value in found.items()}
                print(name, part, processes, json.dumps(found), flush=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--lanes", nargs="+", choices=LANES, default=list(LANES))
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--folder", type=Path)
    wish = parser.parse_args()
    kept = RESULTS / "service.json"
    lanes: dict[str, Figures] = json.loads(kept.read_text())["lanes"] if kept.exists() else {}
    with tempfile.TemporaryDirectory(dir=wish.folder) as folder:
        for name in wish.lanes:
            lanes[name] = lanes.get(name, {}) | run_lane(name, Path(folder), wish)
    data = {"machine": describe(), "goals": verdicts(lanes), "lanes": lanes}
    write_results("service", data, markdown(lanes))
    print(markdown(lanes))


if __name__ == "__main__":
    main()
