"""What `service.py` measures: the API, started as by an operator, on SQLite with folders or PostgreSQL with Redis."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import httpx
import psutil
from embedded import await_answer
from sqlalchemy import ColumnElement, String, case, cast, func, insert, literal, select, text, true
from sqlalchemy.dialects.postgresql import JSONB

from app.core.secret_key import load_pepper
from app.db.migrate import upgrade
from app.db.session import Database
from app.db.tables import Job
from app.keys.service import add_key, ensure_tenant
from app.settings import Settings
from nupes_client.client import Client

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.append(str(REPOSITORY))  # for the servers of the tests

from tests.databases import fresh_database  # noqa: E402
from tests.servers import free_port, postgres_server, redis_server  # noqa: E402
from tests.stack import as_environment  # noqa: E402

LANES = ("sqlite", "postgresql")
BROKERS = {"sqlite": "filesystem", "postgresql": "redis"}
TEAMS = 20
PAST = "job_01000000000000000000"
PADDING = 1_000_000
_LABELS = {
    name: "INSERT INTO job_labels (job_id, tenant_id, key, value) "
    "SELECT jobs.id, jobs.tenant_id, label.key, label.value "
    f"FROM jobs, {each}(jobs.labels) AS label WHERE jobs.id LIKE :past"
    for name, each in (("sqlite", "json_each"), ("postgresql", "jsonb_each_text"))
}


@dataclass(frozen=True)
class Lane:
    """A database with its broker, migrated, and a key for it."""

    name: str
    settings: Settings
    database: Database
    secret: str
    tenant_id: str

    @cached_property
    def server(self) -> psutil.Process | None:
        """The database server; None where it is no process of its own here."""
        if self.name == "sqlite":
            return None
        with self.database.read() as session:
            backend = session.scalar(text("SELECT pg_backend_pid()"))
        return psutil.Process(int(backend or 0)).parent()

    def server_cpu_s(self) -> float:
        """Processor seconds of the database server so far, of backends that ended too."""
        return cpu_s(self.server) if self.server else 0.0


@dataclass(frozen=True)
class Api:
    """A running API."""

    lane: Lane
    port: int
    process: psutil.Process

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def client(self) -> Client:
        """A new SDK client."""
        return Client(self.url, self.lane.secret)

    def http(self) -> httpx.Client:
        """A new client for what the SDK has no words for."""
        headers = {"Authorization": f"Bearer {self.lane.secret}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=600)

    def request(self, method: str, path: str, body: bytes = b"", **headers: str) -> str:
        """An HTTP request as it goes over the wire."""
        fields = {"host": "bench", "authorization": f"Bearer {self.lane.secret}", **headers}
        if body:
            fields |= {"content-type": "application/json", "content-length": str(len(body))}
        lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
        return f"{method} {path} HTTP/1.1\r\n{lines}\r\n{body.decode()}"

    def peak_mb(self) -> float:
        """The largest resident memory so far of its largest process."""
        return max(_high_water_mb(each.pid) for each in (self.process, *self.process.children(recursive=True)))

    def rss_mb(self) -> float:
        """Resident memory now, of all its processes."""
        return sum(each.memory_info().rss for each in (self.process, *self.process.children(recursive=True))) / 1e6


def cpu_s(process: psutil.Process) -> float:
    """Processor seconds of a process and its children, living and dead."""
    total = sum(process.cpu_times()[:4])
    return total + sum(sum(child.cpu_times()[:4]) for child in process.children(recursive=True))


@contextmanager
def open_lane(name: str, folder: Path) -> Iterator[Lane]:
    """A fresh database of a kind, and the broker that goes with it. No quotas: they would be what is measured."""
    with ExitStack() as stack:
        urls: dict[str, str] = {}
        if name == "postgresql":
            urls = {
                "database_url": stack.enter_context(_fresh_postgres()),
                "broker_url": stack.enter_context(redis_server()),
            }
        quotas = dict.fromkeys(("quota_requests_per_minute", "quota_active_jobs", "quota_jobs_per_day"), 0)
        settings = Settings(data_dir=folder / name, queue_prefix=f"bench-{secrets.token_hex(4)}.", **urls, **quotas)  # type: ignore[arg-type]
        upgrade(settings.resolved_database_url)
        database = Database(settings.resolved_database_url)
        stack.callback(database.dispose)
        with database.write() as session:
            tenant = ensure_tenant(session, "bench")
            secret = add_key(session, load_pepper(settings), tenant.id, "bench", ["admin"])[1]
        yield Lane(name, settings, database, secret, tenant.id)


@contextmanager
def running_api(lane: Lane, processes: int = 1) -> Iterator[Api]:
    """The API as the container starts it, its log in a file."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "app.main:create_app", "--factory", "--port", str(port)]
    if processes > 1:
        command += ["--workers", str(processes)]
    with running(lane, command) as process:
        await_answer(f"http://127.0.0.1:{port}/livez")
        yield Api(lane, port, process)


@contextmanager
def running(lane: Lane, command: list[str]) -> Iterator[psutil.Process]:
    """A program on the settings of a lane."""
    environment = {**os.environ, **as_environment(lane.settings)}
    with (lane.settings.data_dir / "log").open("ab") as log:
        process = psutil.Popen(command, env=environment, cwd=REPOSITORY, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def fill(lane: Lane, template_id: str, jobs: int) -> None:
    """Write jobs of the past straight into the table: copies of one, older than all, of nobody's submitting.

    Nine of ten succeeded; each has the label of one of 20 teams and of a commit of its own, its number. See `past_id`.
    """
    numbers = select(literal(0).label("n")).cte("numbers", recursive=True)
    numbers = numbers.union_all(select(numbers.c.n + 1).where(numbers.c.n < jobs - 1))
    number = numbers.c.n
    text_of = partial(cast, type_=String)
    labels = literal('{"team": "team-') + text_of(number % TEAMS) + '", "commit": "' + text_of(number) + '"}'
    status = case((number % 20 == 1, "failed"), (number % 20 == 2, "cancelled"), else_="succeeded")
    changed: dict[str, ColumnElement[Any]] = {
        "id": literal(PAST) + func.substr(text_of(number + PADDING), 2),
        "labels": labels if lane.name == "sqlite" else cast(labels, JSONB),
        "status": status,
    }
    columns = list(Job.__table__.c)
    rows = select(*(changed.get(column.name, column) for column in columns)).join_from(Job, numbers, true())
    with lane.database.write() as session:
        session.execute(insert(Job).from_select(columns, rows.where(Job.id == template_id), include_defaults=False))
        session.execute(text(_LABELS[lane.name]), {"past": f"{PAST}%"})
    with lane.database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE"))  # what PostgreSQL does by itself within a minute


def past_id(number: int) -> str:
    """The id of a job that `fill` wrote."""
    return PAST + str(number + PADDING)[1:]


@contextmanager
def _fresh_postgres() -> Iterator[str]:
    with postgres_server() as admin_url, fresh_database(admin_url, "nupes_bench") as url:
        yield url


def _high_water_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM"))
