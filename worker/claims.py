"""Taking the next job: whose turn it is says `turns`, who gets it the database."""

from __future__ import annotations

from dataclasses import dataclass

from app.db.session import Database
from app.jobs import shards
from app.jobs.shards import ShardFence
from app.jobs.transitions import Fence, claim
from app.settings import Settings
from app.workers.memory import usable_memory
from worker.turns import CANDIDATES, abandoned_jobs, next_jobs


@dataclass(frozen=True)
class Claim:
    """A job that is ours until the lease ends."""

    job_id: str
    fence: Fence


def claim_next(database: Database, settings: Settings, owner: str) -> Claim | None:
    """Take the job whose turn it is of those of this worker's device class that fit its memory; None without any.

    When all candidates went to faster workers there may be more behind them: look again. When the same ones are still
    there it was not speed that decided; they can wait for the next time.
    """
    memory = usable_memory(settings)
    before: list[str] = []
    while (candidates := _candidates(database, settings.device_class, memory)) != before:
        for job_id in candidates:
            with database.write() as session:
                fence = claim(session, job_id, owner, settings.lease_s, memory_bytes=memory)
            if fence is not None:
                return Claim(job_id, fence)
        before = candidates
    return None


def job_waits(database: Database, settings: Settings) -> bool:
    """Whether there is a job for this worker."""
    return bool(_candidates(database, settings.device_class, usable_memory(settings)))


def _candidates(database: Database, device_class: str, memory: int) -> list[str]:
    """A job that was begun and abandoned goes on before others begin."""
    with database.read() as session:
        return abandoned_jobs(session, device_class, memory) or next_jobs(session, device_class, memory)


def claim_shard(database: Database, settings: Settings, owner: str, job_id: str | None = None) -> ShardFence | None:
    """Take a waiting file of a sharded job that runs, of one job or of any; None when there is none that fits here."""
    with database.read() as session:
        waiting = shards.candidates(session, settings.device_class, usable_memory(settings), job_id, CANDIDATES)
    for shard in waiting:
        with database.write() as session:
            fence = shards.claim(session, shard, owner, settings.lease_s)
        if fence is not None:
            return fence
    return None
