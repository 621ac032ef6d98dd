"""A running service under test: `nupes up` with its children, a client that does not give up, and what reaches out."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import func, select

from app.db.session import Database
from app.db.tables import Job
from app.settings import Settings
from nupes_client.client import Client
from nupes_client.errors import NupesError
from nupes_client.schemas.jobs import JobStatus
from nupes_client.schemas.specs import JobCreate
from nupes_client.schemas.webhooks import WebhookEvent
from tests.app.receivers import Receiver, receiver
from tests.chaos.brokers import Broker, Folders
from tests.chaos.disks import small_disk
from tests.chaos.recorder import Recorder
from tests.hubserver import Hub, hub_server
from tests.stack import Stack, running_stack
from tests.worker.factory import wait_for, wait_for_end, write_sharded_llama, write_tiny_llama
from worker.workfolder import jobs_dir

PATIENCE_S = 400.0
DISK_MB = 160
REPO_ID = "chaos/tiny"
CHILDREN = ("worker.fetcher", "worker.runner", "worker.runner_check", "worker.uploader")
QUICK: dict[str, object] = {
    "lease_s": 6.0,
    "lease_renew_s": 1.0,
    "poll_s": 0.5,
    "sweep_s": 0.5,
    "heartbeat_s": 0.5,
    "cancel_grace_s": 1.0,
    "webhook_timeout_s": 1.5,
    "webhook_http": True,
    "webhook_networks": "127.0.0.0/8",
    "min_free_disk_bytes": 0,
    "max_attempts": 10,
    "retry_pause_s": 0.5,
    "quota_requests_per_minute": 0,
    "auth_failures_per_minute": 0,
    "threads": 1,
    "fan_out_bytes": 0,
}
"""Settings under which things go wrong, and right again, within seconds."""


@dataclass
class System:
    """What the faults hit and the oracles look at. `wishes` are the jobs that were accepted, by their names."""

    settings: Settings
    database: Database
    stack: Stack
    client: Client
    broker: Broker
    hub: Hub
    receiver: Receiver
    recorder: Recorder
    models: dict[str, str]
    disk_can_fill: bool
    accepted: dict[str, str] = field(default_factory=dict)

    def submit(self, name: str, *, model: str = "uploaded", **wish: Any) -> str:
        """Send a job until the service has taken it, always under the same key; return its id."""
        body = JobCreate.model_validate(
            {"model": {"id": self.models[model]}, "name": name, "evaluation": None, "cache": False, **wish}
        )
        job = self.insist(lambda: self.client.jobs.create(body, idempotency_key=name))
        self.accepted[name] = job.id
        return job.id

    def insist(self, act: Callable[[], Any]) -> Any:
        """Do something over HTTP until it is done."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return act()
            except NupesError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def job(self, job_id: str) -> Job:
        with self.database.read() as session:
            return session.get_one(Job, job_id)

    def running(self) -> list[Job]:
        """Jobs that a worker has."""
        with self.database.read() as session:
            return list(
                session.scalars(select(Job).where(Job.status == JobStatus.RUNNING, Job.lease_owner.is_not(None)))
            )

    def waiting_or_running(self) -> list[Job]:
        """Jobs that have not ended."""
        ended = [status.value for status in JobStatus if status.is_terminal]
        with self.database.read() as session:
            return list(session.scalars(select(Job).where(Job.status.not_in(ended))))

    def count_ended(self) -> int:
        """How many jobs have ended."""
        ended = [status.value for status in JobStatus if status.is_terminal]
        with self.database.read() as session:
            return session.scalar(select(func.count()).select_from(Job).where(Job.status.in_(ended))) or 0

    def await_end_of(self, job_id: str, timeout_s: float = PATIENCE_S) -> Job:
        """Return a job once it has ended."""
        return wait_for_end(self.database, job_id, timeout_s)

    def await_end(self, timeout_s: float = PATIENCE_S) -> None:
        """Wait until every job has ended."""
        wait_for(lambda: not self.waiting_or_running(), timeout_s, "end of all jobs")

    def api(self) -> psutil.Process:
        """The process that answers HTTP."""
        return self._await_process("app.up.serve")

    def worker_mains(self) -> list[psutil.Process]:
        """Celery's main processes."""
        return [each for each in psutil.Process(self.stack.pid).children() if command_line(each).endswith("-m worker")]

    def slot_of(self, job: Job) -> psutil.Process | None:
        """The pool process that has the job, if it lives."""
        with suppress(psutil.Error):
            slot = psutil.Process(int(str(job.lease_owner).split(":")[2]))
            return slot if slot.status() != psutil.STATUS_ZOMBIE else None
        return None

    def children(self, job_id: str = "") -> list[psutil.Process]:
        """Processes that do the work of jobs, or of one."""
        folder = str(jobs_dir(self.settings.work_dir).absolute() / job_id)
        lines = {process: command_line(process) for process in psutil.process_iter()}
        return [each for each, line in lines.items() if folder in line and any(module in line for module in CHILDREN)]

    def _await_process(self, words: str) -> psutil.Process:
        def found() -> list[psutil.Process]:
            return [each for each in psutil.Process(self.stack.pid).children() if words in command_line(each)]

        process: psutil.Process = wait_for(found, 60, words)[0]
        return process


def command_line(process: psutil.Process) -> str:
    """What a process runs; nothing for one that is ending."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def signal_group(process: psutil.Process, number: signal.Signals) -> None:
    """Signal a process and all of its group."""
    with suppress(ProcessLookupError, psutil.Error):
        os.killpg(os.getpgid(process.pid), number)


def write_stranger(folder: Path) -> Path:
    """Write a model that nobody can build: its job costs half the time, as no child has to load transformers."""
    return _as_a_stranger(write_tiny_llama(folder, layers=1, hidden=16))


def _as_a_stranger(folder: Path) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "stranger", "architectures": ["Stranger"]}))
    return folder


@contextmanager
def running_system(settings: Settings, broker: Broker | None, models: Path, *, workers: int = 2) -> Iterator[System]:
    """Start everything; on leaving, stop it. `models` is a folder for the files of the models to be sent."""
    with ExitStack() as exits:
        disk_can_fill = exits.enter_context(small_disk(settings.data_dir, DISK_MB))
        hub, hook = exits.enter_context(hub_server()), exits.enter_context(receiver())
        llama = write_tiny_llama(models / "llama", layers=1, hidden=16)
        folder = write_stranger(models / "stranger")
        sharded = _as_a_stranger(write_sharded_llama(models / "sharded", layers=2, hidden=16))
        hub.add(REPO_ID, {path.name: path.read_bytes() for path in folder.iterdir()})
        stack = exits.enter_context(running_stack(settings, workers=workers, environment={"HF_ENDPOINT": hub.url}))
        database = Database(settings.resolved_database_url)
        exits.callback(database.dispose)
        client = exits.enter_context(stack.client())
        recorder = exits.enter_context(Recorder(database))
        client.webhooks.create(hook.url, events=list(WebhookEvent))
        sent = {
            "uploaded": client.models.from_folder(folder).id,
            "hub": client.models.from_hub(REPO_ID).id,
            "llama": client.models.from_folder(llama).id,
            "sharded": client.models.from_folder(sharded).id,
        }
        yield System(
            settings,
            database,
            stack,
            client,
            broker or Folders(settings.queue_dir),
            hub,
            hook,
            recorder,
            sent,
            disk_can_fill,
        )
