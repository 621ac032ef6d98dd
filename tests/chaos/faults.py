"""Each thing that can go wrong, by name. A fault does its harm, makes it good again and says what it hit."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from random import Random

import psutil
from sqlalchemy import select

from app.db.tables import Job
from app.queue.publisher import BrokerUnavailableError, Publisher
from nupes_client.schemas.jobs import JobStatus
from tests.app.receivers import Behave, answering, hanging, taking
from tests.chaos.databases import can_be_written, locked
from tests.chaos.disks import filled
from tests.chaos.system import System, signal_group
from tests.worker.factory import wait_for

Fault = Callable[[System, Random], str]

LOCK_S = 10.0
DOWN_S = 5.0
FULL_S = 4.0
TROUBLE_S = 3.0
FIND_S = 240.0
TAKEOVER_S = 20.0
ATTEMPTS_TO_SUSPEND = 20


def kill_child(system: System, rng: Random) -> str:
    """SIGKILL to a process that does the work of a job: fetcher, runner, check or uploader."""
    found = wait_for(lambda: system.children() or not system.waiting_or_running(), FIND_S, "a child")
    if found is True:
        return "no child was there"
    child = rng.choice(found)
    with suppress(psutil.Error):
        line = child.cmdline()
        child.kill()
        return f"killed {line[-2]}"
    return "the child was faster"


def kill_slot(system: System, rng: Random) -> str:
    """SIGKILL to the pool process that has a job; Celery replaces it."""
    job, slot = _busy_slot(system, rng)
    if slot is None:
        return "no slot was busy"
    slot.kill()
    return f"killed the slot of {job.name}"


def kill_worker(system: System, rng: Random) -> str:
    """SIGKILL to a whole worker: main process and slot at once."""
    job, slot = _busy_slot(system, rng)
    if slot is None:
        return "no worker was busy"
    signal_group(slot, signal.SIGKILL)
    return f"killed the worker of {job.name}"


def kill_worker_and_its_reaper(system: System, rng: Random) -> str:
    """SIGKILL to a busy worker, and to the others just when they look after its job."""
    job, slot = _busy_slot(system, rng)
    if slot is None:
        return "no worker was busy"
    others = [each for each in system.worker_mains() if each.pid not in {slot.pid, slot.ppid()}]
    signal_group(slot, signal.SIGKILL)
    time.sleep(rng.uniform(0, 2 * system.settings.sweep_s))  # reapers look every `sweep_s`
    for other in others:
        signal_group(other, signal.SIGKILL)
    return f"killed the worker of {job.name} and {len(others)} that would have reaped it"


def stop_worker(system: System, rng: Random) -> str:
    """SIGSTOP to a busy worker and its child until its job is somebody else's or waits for others; then SIGCONT."""
    job, slot = _busy_slot(system, rng)
    if slot is None:
        return "no worker was busy"
    family = [*slot.children(recursive=True), slot]
    _suspend(system, family)
    try:
        wait_for(lambda: system.job(job.id).lease_owner != job.lease_owner, FIND_S, "loss of the lease")
        with suppress(AssertionError):  # other jobs may come first
            wait_for(lambda: _moved_on(system, job), TAKEOVER_S, "takeover")
    finally:
        _signal_all(family, signal.SIGCONT)
    return f"stopped the worker of {job.name} in attempt {job.attempt}, woke it in {system.job(job.id).attempt}"


def _suspend(system: System, family: list[psutil.Process]) -> None:
    """Stop processes at a moment in which none of them holds the lock of SQLite: else nobody could go on."""
    for _ in range(ATTEMPTS_TO_SUSPEND):
        _signal_all(family, signal.SIGSTOP)
        if can_be_written(system.settings):
            return
        _signal_all(family, signal.SIGCONT)
        time.sleep(0.05)
    raise AssertionError("the worker held the lock of the database whenever it was stopped")


def _signal_all(family: list[psutil.Process], number: signal.Signals) -> None:
    for each in family:
        with suppress(psutil.Error):
            each.send_signal(number)


def kill_api_before_commit(system: System, rng: Random) -> str:
    """SIGKILL to the API while a submission waits for the database; the client sends it again."""
    name = f"uncommitted-{rng.randrange(10**9)}"
    with locked(system.settings):
        sender = _submitting(system, name)
        time.sleep(1.0)  # it hangs before or in its transaction now: nobody can write
        system.api().kill()
    sender.join(FIND_S)
    return f"killed the API before {name} was committed"


def kill_api_after_commit(system: System, rng: Random) -> str:
    """SIGKILL to the API as soon as a submission is committed, whether it has answered or not."""
    name = f"committed-{rng.randrange(10**9)}"
    sender = _submitting(system, name)
    with suppress(AssertionError):
        wait_for(lambda: _named(system, name), FIND_S, "commit")
    system.api().kill()
    sender.join(FIND_S)
    return f"killed the API after {name} was committed"


def lock_database(system: System, _rng: Random) -> str:
    """Somebody holds the database for ten seconds."""
    with locked(system.settings):
        time.sleep(LOCK_S)
    return f"locked the database for {LOCK_S:g} s"


def restart_broker(system: System, _rng: Random) -> str:
    """The broker ends without a word, with all it had, and is there again at once."""
    system.broker.down()
    system.broker.up()
    return "restarted the broker"


def take_broker_away(system: System, _rng: Random) -> str:
    """The broker is down for a while."""
    system.broker.down()
    time.sleep(DOWN_S)
    system.broker.up()
    return f"the broker was down for {DOWN_S:g} s"


def flush_broker(system: System, _rng: Random) -> str:
    """Every message is forgotten."""
    system.broker.flush()
    return "flushed the broker"


def repeat_messages(system: System, rng: Random) -> str:
    """Wake-ups come several times, in any order, for ended jobs and for jobs that never were."""
    with system.database.read() as session:
        known = list(session.scalars(select(Job.id).order_by(Job.id.desc()).limit(20)))
    messages = [*known, *known, "job_unheard_of"]
    rng.shuffle(messages)
    with suppress(BrokerUnavailableError), Publisher(system.settings) as publisher:
        for job_id in messages:
            publisher.publish(job_id, "cpu")
    return f"sent {len(messages)} wake-ups nobody needs"


def fill_disk(system: System, _rng: Random) -> str:
    """Not a byte is left on the disk of the service for a while."""
    if not system.disk_can_fill:
        return "SKIPPED: this user may not mount a small disk"
    with filled(system.settings.data_dir):
        time.sleep(FULL_S)
    return f"the disk was full for {FULL_S:g} s"


def trouble_hub(system: System, rng: Random) -> str:
    """The hub answers 429 or 500, or hangs up in the middle of a file."""
    kind = rng.choice([429, 500, "cut"])
    system.hub.status, system.hub.cut_bodies = (None, True) if kind == "cut" else (kind, False)
    time.sleep(TROUBLE_S)
    system.hub.status, system.hub.cut_bodies = None, False
    return f"the hub was in trouble ({kind}) for {TROUBLE_S:g} s"


_BEHAVIOURS: dict[str, Behave] = {
    "500": answering(500),
    "hang": hanging,
    "redirect": answering(302, location="http://127.0.0.1:1/elsewhere"),
}


def trouble_receiver(system: System, rng: Random) -> str:
    """The receiver of webhooks answers 500, never, or with a redirect."""
    kind = rng.choice(sorted(_BEHAVIOURS))
    system.receiver.behave = _BEHAVIOURS[kind]
    time.sleep(TROUBLE_S)
    system.receiver.behave = taking
    return f"the receiver was in trouble ({kind}) for {TROUBLE_S:g} s"


def cancel_a_job(system: System, rng: Random) -> str:
    """A user cancels a job, whatever it is doing."""
    alive = system.waiting_or_running()
    if not alive:
        return "there was nothing to cancel"
    job = rng.choice(alive)
    system.insist(lambda: system.client.jobs.cancel(job.id))
    return f"cancelled {job.name} while it was {job.status} ({job.phase})"


FAULTS: dict[str, Fault] = {
    each.__name__: each
    for each in (
        kill_child,
        kill_slot,
        kill_worker,
        kill_worker_and_its_reaper,
        stop_worker,
        kill_api_before_commit,
        kill_api_after_commit,
        lock_database,
        restart_broker,
        take_broker_away,
        flush_broker,
        repeat_messages,
        fill_disk,
        trouble_hub,
        trouble_receiver,
        cancel_a_job,
    )
}


def _busy_slot(system: System, rng: Random) -> tuple[Job, psutil.Process] | tuple[None, None]:
    """A running job and the pool process that has it; nothing when all jobs have ended meanwhile."""

    def busy() -> list[tuple[Job, psutil.Process]]:
        return [(job, slot) for job in system.running() if (slot := system.slot_of(job)) is not None]

    found = wait_for(lambda: busy() or not system.waiting_or_running(), FIND_S, "a busy worker")
    return (None, None) if found is True else rng.choice(found)


def _moved_on(system: System, before: Job) -> bool:
    job = system.job(before.id)
    return job.attempt > before.attempt or JobStatus(job.status).is_terminal


def _submitting(system: System, name: str) -> threading.Thread:
    thread = threading.Thread(target=system.submit, args=(name,), daemon=True)
    thread.start()
    return thread


def _named(system: System, name: str) -> str | None:
    with system.database.read() as session:
        return session.scalar(select(Job.id).where(Job.name == name))
