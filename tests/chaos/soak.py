"""Many small jobs under random faults: `python -m tests.chaos.soak --jobs 300 --seed 1 --backend sqlite`.

The seed decides what is sent and what goes wrong in which order; when, the machine decides. Prints what happened and
what the oracles say; exits with 1 when one of them objects.
"""

from __future__ import annotations

import argparse
import math
import secrets
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from sqlalchemy import select

from app.db.tables import Job
from app.settings import Settings
from tests.chaos.brokers import Broker, own_redis
from tests.chaos.faults import FAULTS
from tests.chaos.oracles import processes_marked, verdict
from tests.chaos.system import QUICK, System, running_system
from tests.databases import fresh_database
from tests.servers import postgres_server
from tests.worker.factory import wait_for

Say = Callable[[str], None]

AT_ONCE = 8
"""Jobs that have not ended: enough that a worker is always busy."""
REST_S = 120.0
"""The next fault waits for the end of a job, but no longer than this: there must be work that can be harmed."""
PAUSE_S = (0.0, 2.0)
"""After that, so that faults hit every stage of a job."""
LOG = Path("build/chaos.log")
END_S = 1200.0
"""For the jobs that are left when nothing goes wrong any more: a limit for loaded machines, hardly ever reached."""


def soak(
    system: System,
    jobs: int,
    seed: int,
    *,
    say: Say,
    kinds: Sequence[str] = tuple(FAULTS),
    most: float = math.inf,
    seconds: float = math.inf,
) -> Counter[str]:
    """Send jobs while faults happen; wait for their ends; return how often each fault was done.

    Args:
        system: to be harmed.
        jobs: how many.
        seed: decides what is sent, and which faults come in which order.
        say: takes a line for each fault.
        kinds: names of the faults.
        most: faults, after which nothing goes wrong any more.
        seconds: no job is sent after this time.
    """
    over, done, limit = threading.Event(), Counter[str](), time.monotonic() + seconds
    harm = partial(_do_harm, system, Random(seed), kinds, most, over=over, done=done, say=say)
    trouble = threading.Thread(target=harm, daemon=True)
    trouble.start()
    wishes = Random(seed + 1)
    for number in range(jobs):
        while len(system.waiting_or_running()) >= AT_ONCE:
            time.sleep(0.1)
        if time.monotonic() > limit:
            break
        system.submit(f"job-{number}", **_wish(wishes))
    wait_for(lambda: len(system.waiting_or_running()) <= 1, END_S, "end of all jobs but one")
    over.set()
    trouble.join(END_S)
    system.await_end(END_S)
    return done


def _wish(rng: Random) -> dict[str, Any]:
    """Mostly real work; some of it is equal to earlier work and may be answered from the cache."""
    return {
        "model": rng.choice(["uploaded", "uploaded", "hub", "hub", "llama", "sharded"]),
        "weights": {"bits": rng.choice([2, 3, 4, 8]), "group_size": rng.choice([16, -1])},
        "formats": rng.choice([["nupes"], ["nupes", "dense"]]),
        "cache": rng.random() < 0.3,
        "priority": rng.randint(-1, 1),
    }


def _do_harm(
    system: System,
    rng: Random,
    kinds: Sequence[str],
    most: float,
    *,
    over: threading.Event,
    done: Counter[str],
    say: Say,
) -> None:
    names: list[str] = []
    while done.total() < most and not over.wait(rng.uniform(*PAUSE_S)):
        names = names or rng.sample(sorted(kinds), len(kinds))  # each as often as any other
        name = names.pop()
        try:
            say(f"{name}: {FAULTS[name](system, rng)}")
        except Exception as error:
            say(f"{name}: could not be done: {error!r}")
            continue
        done[name] += 1
        _let_a_job_end(system, over)


def _let_a_job_end(system: System, over: threading.Event) -> None:
    ended, limit = system.count_ended(), time.monotonic() + REST_S
    while system.count_ended() == ended and time.monotonic() < limit and not over.wait(0.2):
        continue


@contextmanager
def backend(kind: str, folder: Path) -> Iterator[tuple[Settings, Broker | None]]:
    """Settings of a fresh stack and, where it has one of its own, its broker."""
    data_dir = folder / "data"
    data_dir.mkdir(mode=0o700)
    common = {"data_dir": data_dir, "queue_prefix": f"nupes-chaos-{secrets.token_hex(4)}.", "log_json": False, **QUICK}
    if kind == "sqlite":
        yield Settings.model_validate(common), None
        return
    with postgres_server() as url, own_redis() as broker, fresh_database(url, "nupes_chaos") as database_url:
        yield Settings.model_validate({**common, "database_url": database_url, "broker_url": broker.url}), broker


def _ends(system: System) -> Counter[str]:
    with system.database.read() as session:
        rows = session.execute(select(Job.status, Job.attempt, Job.cache_hit, Job.error)).all()
    return Counter(_end(*row) for row in rows)


def _end(status: str, attempt: int, cache_hit: bool, error: dict[str, Any] | None) -> str:
    if cache_hit:
        return f"{status} from the cache"
    return f"{status} ({error['code']})" if error else f"{status} in attempt {attempt}"


def main() -> int:
    """Run and judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=math.inf, help="send no more jobs after this time")
    parser.add_argument("--backend", choices=["sqlite", "postgres"], default="sqlite")
    wish = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="nupes-chaos-") as folder:
        with (
            backend(wish.backend, Path(folder)) as (settings, broker),
            running_system(settings, broker, Path(folder)) as system,
        ):
            done = soak(system, wish.jobs, wish.seed, say=partial(print, flush=True), seconds=60 * wish.minutes)
            ends = _ends(system)
            wrong = verdict(system)
            log = system.stack.log.read_bytes()
        wrong += [f"process is left: {line}" for line in processes_marked(settings.data_dir)]
    print(f"{ends.total()} jobs in {time.monotonic() - began:.0f} s on {wish.backend}, seed {wish.seed}")
    print("\n".join(f"  {count:4} {end}" for end, count in sorted(ends.items())))
    print(f"{done.total()} faults:\n" + "\n".join(f"  {count:4} {name}" for name, count in sorted(done.items())))
    if wrong:
        LOG.parent.mkdir(exist_ok=True)
        LOG.write_bytes(log)
        wrong.append(f"what the service printed is in {LOG}")
    print("\n".join(["THE ORACLES OBJECT:", *wrong]) if wrong else "the oracles have no objection")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
