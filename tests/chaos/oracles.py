"""What must hold after any number of faults. An oracle returns what is wrong, in words; nothing means that it holds."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
from sqlalchemy import select, update

from app.core.clock import now
from app.db.tables import Artifact, Job, JobEvent, Upload, WebhookDelivery
from app.settings import Settings
from app.storage import BlobStore, open_store
from nupes_client.schemas.jobs import TERMINAL_STATUSES, JobStatus
from nupes_client.schemas.problems import JobErrorCode
from nupes_client.schemas.webhooks import DeliveryStatus
from tests.chaos.system import System
from tests.stack import as_environment
from tests.worker.factory import wait_for

PERMITTED_ERRORS = frozenset(
    {
        JobErrorCode.WORKER_LOST,
        JobErrorCode.OOM_HOST,
        JobErrorCode.DISK_FULL,
        JobErrorCode.DOWNLOAD_FAILED,
        JobErrorCode.PUBLISH_FAILED,
    }
)
"""How a job may fail that nothing was wrong with: our faults look like these. Anything else is a defect."""

Oracle = Callable[[System], list[str]]


def every_accepted_job_ended_once(system: System) -> list[str]:
    """One job for each accepted request, however often it was sent; all ended, for a reason that a fault explains."""
    with system.database.read() as session:
        jobs = list(session.scalars(select(Job)))
    wrong = [f"{name} made {count} jobs" for name, count in Counter(job.name for job in jobs).items() if count > 1]
    known = {job.name: job.id for job in jobs}
    wrong += [
        f"{name} was accepted as {id_} and is lost" for name, id_ in system.accepted.items() if known.get(name) != id_
    ]
    wrong += [f"{job.id} ({job.name}) is still {job.status}" for job in jobs if not JobStatus(job.status).is_terminal]
    return wrong + [f"{job.id} ({job.name}) failed: {job.error}" for job in jobs if _failed_for_no_reason(job)]


def _failed_for_no_reason(job: Job) -> bool:
    return job.status == JobStatus.FAILED and (job.error or {}).get("code") not in PERMITTED_ERRORS


def events_are_gapless_and_legal(system: System) -> list[str]:
    """Numbered 1, 2, 3 …, statuses in a chain, and the end comes last and once."""
    with system.database.read() as session:
        jobs = list(session.scalars(select(Job)))
        told = list(session.scalars(select(JobEvent).order_by(JobEvent.job_id, JobEvent.seq)))
    events: dict[str, list[JobEvent]] = defaultdict(list)
    for event in told:
        events[event.job_id].append(event)
    return [f"{job.id}: {problem}" for job in jobs for problem in _problems_of_events(job, events[job.id])]


def _problems_of_events(job: Job, events: list[JobEvent]) -> Iterator[str]:
    if [event.seq for event in events] != list(range(1, job.event_seq + 1)):
        yield "events are not numbered without gaps"
    moves = [event for event in events if event.type == "status"]
    chain = [None, *(event.data["to"] for event in moves)]
    if [event.data["from"] for event in moves] != chain[:-1] or chain[-1] != job.status:
        yield f"statuses do not follow one another: {chain}"
    ends = [event.seq for event in moves if event.data["to"] in TERMINAL_STATUSES]
    if ends != [job.event_seq]:
        yield f"ended at {ends} of {job.event_seq} events"


def effects_happened_once(system: System) -> list[str]:
    """A succeeded job has one whole set of files that are what their checksums say; another job has none."""
    store = open_store(system.settings)
    with system.database.read() as session:
        jobs = {job.id: job for job in session.scalars(select(Job))}
        files: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
        for artifact in session.scalars(select(Artifact)):
            files[artifact.job_id, artifact.format][artifact.path] = artifact.sha256
    wrong = [
        f"{job_id} is {jobs[job_id].status} and has files"
        for job_id, _ in files
        if jobs[job_id].status != JobStatus.SUCCEEDED
    ]
    for job in jobs.values():
        formats = job.config["formats"] if job.status == JobStatus.SUCCEEDED else []
        for name in formats:
            wrong += [f"{job.id}: {problem}" for problem in _problems_of_files(files[job.id, name], store)]
    return wrong


def _problems_of_files(files: dict[str, str], store: BlobStore) -> list[str]:
    if "SHA256SUMS" not in files:
        return [f"no SHA256SUMS among {sorted(files)}"]
    lines = b"".join(store.open(files["SHA256SUMS"])).decode().splitlines()
    listed = {name: digest for digest, name in (line.split(maxsplit=1) for line in lines)}
    published = {path: digest for path, digest in files.items() if path != "SHA256SUMS"}
    if listed != published:
        return [f"SHA256SUMS lists {sorted(listed)}, published are {sorted(published)}, or their sums differ"]
    stored = {path: hashlib.sha256(b"".join(store.open(digest))).hexdigest() for path, digest in files.items()}
    return [f"{path} is stored as {stored[path]}" for path, digest in files.items() if stored[path] != digest]


def equal_jobs_wrote_equal_weights(system: System) -> list[str]:
    """However often work was cut off, resumed or shared between workers, the weights are those of any equal job."""
    weights: dict[tuple[str, ...], set[str]] = defaultdict(set)
    query = select(Job, Artifact).join(Artifact, Artifact.job_id == Job.id).where(Artifact.path.like("%.safetensors"))
    with system.database.read() as session:
        for job, file in session.execute(query):
            wish = json.dumps(job.config["weights"], sort_keys=True)
            weights[str(job.model_id), wish, file.format, file.path].add(file.sha256)
    return [f"{len(sums)} different files of {wish}" for wish, sums in weights.items() if len(sums) > 1]


def one_message_for_each_transition(system: System) -> list[str]:
    """Each change of status made one message, each arrived, and repetitions were the same under the same id."""
    with system.database.read() as session:
        moves = Counter(
            (event.job_id, f"job.{event.data['to']}")
            for event in session.scalars(select(JobEvent).where(JobEvent.type == "status"))
        )
        rows = list(session.scalars(select(WebhookDelivery)))
    messages = Counter((row.job_id, row.type) for row in rows)
    wrong = [
        f"{key}: {moves[key]} transitions, {messages[key]} messages"
        for key in moves | messages
        if moves[key] != messages[key]
    ]
    bodies: dict[str, set[bytes]] = defaultdict(set)
    for received in list(system.receiver.got):
        bodies[received.message_id].add(received.body)
    wrong += [f"message {id_} arrived with several contents: {each}" for id_, each in bodies.items() if len(each) > 1]
    wrong += [f"message {id_} was never queued" for id_ in bodies.keys() - {row.id for row in rows}]
    return wrong + [
        f"message {row.id} did not arrive"
        for row in rows
        if row.id not in bodies or row.status != DeliveryStatus.SUCCEEDED
    ]


def nothing_written_was_changed(system: System) -> list[str]:
    """No terminal status and no event ever changed, says the recorder."""
    system.recorder.look()
    return system.recorder.violations


def no_process_of_a_job_is_left(system: System) -> list[str]:
    """Once all jobs have ended, nothing works on one any more."""
    deadline = time.monotonic() + 20
    while (left := system.children()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return [f"process {process.pid} still runs: {process.cmdline()}" for process in left]


ORACLES: tuple[Oracle, ...] = (
    every_accepted_job_ended_once,
    events_are_gapless_and_legal,
    effects_happened_once,
    equal_jobs_wrote_equal_weights,
    one_message_for_each_transition,
    nothing_written_was_changed,
    no_process_of_a_job_is_left,
)


def verdict(system: System) -> list[str]:
    """Let the last messages go out, then ask every oracle, then delete everything and look at the disk."""
    deliver_what_waits(system)
    wrong = [f"{oracle.__name__}: {problem}" for oracle in ORACLES for problem in oracle(system)]
    return wrong + [f"disk: {problem}" for problem in disk_is_at_its_baseline(system)]


def deliver_what_waits(system: System, timeout_s: float = 120) -> None:
    """Skip the pauses between the attempts to deliver."""
    pending = WebhookDelivery.status == DeliveryStatus.PENDING

    def done() -> bool:
        with system.database.write() as session:
            waits = update(WebhookDelivery).where(pending, WebhookDelivery.next_attempt_at > now())
            session.execute(waits.values(next_attempt_at=now()))
        with system.database.read() as session:
            return session.scalar(select(WebhookDelivery.id).where(pending)) is None

    wait_for(done, timeout_s, "delivery of all messages")


def disk_is_at_its_baseline(system: System) -> list[str]:
    """After deleting jobs, models and uploads and two rounds of housekeeping not one file of theirs is left."""
    with system.database.read() as session:
        job_ids, upload_ids = list(session.scalars(select(Job.id))), list(session.scalars(select(Upload.id)))
    for job_id in job_ids:
        system.insist(lambda job_id=job_id: system.client._transport.request("DELETE", f"/v1/jobs/{job_id}"))
    for model_id in system.models.values():
        system.insist(lambda model_id=model_id: system.client.models.delete(model_id))
    for upload_id in upload_ids:
        system.insist(lambda upload_id=upload_id: system.client.uploads.delete(upload_id))
    for _ in range(2):  # dooms, then deletes
        keep_house(system.settings)
    deadline = time.monotonic() + 20
    while (left := files_left(system.settings)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return [f"{path} is left" for path in left]


def keep_house(settings: Settings) -> None:
    """A round of housekeeping that finds everything old enough."""
    environment = {**os.environ, **as_environment(settings), "NUPES_GARBAGE_GRACE_S": "0"}
    subprocess.run([sys.executable, "-m", "app.housekeeping"], env=environment, check=True, capture_output=True)


def files_left(settings: Settings) -> list[str]:
    """Files of blobs and of work folders."""
    roots = (settings.data_dir / "blobs", settings.work_dir)
    return [str(path.relative_to(settings.data_dir)) for root in roots for path in root.rglob("*") if path.is_file()]


def processes_marked(data_dir: Path) -> list[str]:
    """What still runs of a service that was stopped: processes whose environment names its data folder."""
    left = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and any(str(data_dir) in value for value in process.environ().values()):
                left.append(json.dumps(process.cmdline()))
        except psutil.Error:
            continue
    return left
