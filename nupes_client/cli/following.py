"""Waiting for a job in front of the user, and fetching what it left."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nupes_client.cli import output
from nupes_client.cli.exits import ExitCode, code_of, leave
from nupes_client.cli.progress import job_progress, transfer
from nupes_client.cli.summary import show

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nupes_client.client import Client
    from nupes_client.schemas.jobs import Job


def follow(client: Client, job: Job, *, timeout_s: float | None, download: Path | None, as_json: bool) -> None:
    """Wait for a job, fetch its files, report, and leave with the exit code it stands for.

    Raises:
        NupesExit: the job did not simply succeed.
        WaitTimeoutError: it had not ended in time.
    """
    job = _wait(client, job, timeout_s)
    files: Sequence[Path] = ()
    if download is not None and job.result is not None:
        files = fetch(client, job.id, download)
    if as_json:
        output.print_json(with_files(job, files))
    else:
        show(job, download if files else None)
    if code_of(job) is not ExitCode.OK:
        leave(code_of(job))


def fetch(client: Client, job_id: str, folder: Path) -> Sequence[Path]:
    """Download the files of a job with progress."""
    total = sum(artifact.size for artifact in client.artifacts.list(job_id))
    with transfer("downloaded", total) as advance:
        return client.artifacts.download_all(job_id, folder, advance=advance)


def with_files(job: Job, files: Sequence[Path]) -> dict[str, Any]:
    """The job as JSON, with the files that were downloaded."""
    return {**job.model_dump(mode="json"), "downloaded": [str(path) for path in files]}


def _wait(client: Client, job: Job, timeout_s: float | None) -> Job:
    try:
        with job_progress() as update:
            return client.jobs.wait(job.id, timeout_s=timeout_s, on_update=update)
    except KeyboardInterrupt:
        output.note(
            f"\njob {job.id} keeps running.  follow it: nupes job {job.id} --wait   stop it: nupes cancel {job.id}"
        )
        leave(ExitCode.INTERRUPTED)
