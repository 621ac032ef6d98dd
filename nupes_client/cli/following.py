"""Waiting for a job in front of the user, and fetching what it left."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nupes_client.cli import output
from nupes_client.cli.exits import ExitCode, code_of, leave
from nupes_client.cli.junit import unfinished
from nupes_client.cli.output import write_file
from nupes_client.cli.progress import job_progress, transfer
from nupes_client.cli.summary import append_step_summary, show
from nupes_client.errors import NupesError, ServiceUnreachableError, WaitTimeoutError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nupes_client.client import Client
    from nupes_client.schemas.jobs import Job


@dataclass(frozen=True)
class Keepsakes:
    """What of an ended job is wanted on this machine: a folder for its files, a file for its JUnit report."""

    download: Path | None = None
    junit: Path | None = None

    def __bool__(self) -> bool:
        return self.download is not None or self.junit is not None


def follow(client: Client, job: Job, *, timeout_s: float | None, keep: Keepsakes, as_json: bool) -> None:
    """Wait for a job, fetch what is wanted of it, report, and leave with the exit code it stands for.

    Where the service does not answer any more, the job is reported as it was seen last.

    Raises:
        NupesExit: the job did not simply succeed, or had not ended in time.
    """
    try:
        job = _wait(client, job, timeout_s)
    except WaitTimeoutError as error:
        _say_unfinished(client.jobs.get(job.id), error, keep, as_json=as_json)
        leave(ExitCode.WAIT_TIMEOUT)
    except ServiceUnreachableError as error:
        _say_unfinished(job, error, keep, as_json=as_json)
        output.note(f"job {job.id} was {job.status} when it was seen last; then: nupes job {job.id} --wait")
        leave(ExitCode.USAGE)
    files: Sequence[Path] = ()
    if keep.junit is not None:
        write_file(keep.junit, client.jobs.report(job.id, "junit"))
    if keep.download is not None and job.result is not None:
        files = fetch(client, job.id, keep.download)
    folder = keep.download if files else None
    append_step_summary(job, folder)
    if as_json:
        output.print_json(with_files(job, files))
    else:
        show(job, folder)
    if code_of(job) is not ExitCode.OK:
        leave(code_of(job))


def fetch(client: Client, job_id: str, folder: Path) -> Sequence[Path]:
    """Download the files of a job with progress."""
    total = sum(artifact.size for artifact in client.artifacts.list(job_id))
    kept: list[int] = []
    with transfer("downloaded", total) as advance:
        files = client.artifacts.download_all(job_id, folder, advance=advance, kept=kept.append)
    if kept:
        output.note(f"{len(kept)} of {len(files)} files were there already, whole ({output.size(sum(kept))})")
    return files


def with_files(job: Job, files: Sequence[Path]) -> dict[str, Any]:
    """The job as JSON, with the files that were downloaded."""
    return {**job.model_dump(mode="json"), "downloaded": [str(path) for path in files]}


def _say_unfinished(job: Job, error: NupesError, keep: Keepsakes, *, as_json: bool) -> None:
    """Report a job that could not be waited for any longer, as it was seen last: a pipeline needs its id."""
    append_step_summary(job, None)
    if keep.junit is not None:
        write_file(keep.junit, unfinished(job, str(error)))
    output.complain(str(error), error.hint)
    if as_json:
        output.print_json(with_files(job, ()))


def _wait(client: Client, job: Job, timeout_s: float | None) -> Job:
    try:
        with job_progress() as update:
            return client.jobs.wait(job.id, timeout_s=timeout_s, on_update=update)
    except KeyboardInterrupt:
        output.note(
            f"\njob {job.id} keeps running.  follow it: nupes job {job.id} --wait   stop it: nupes cancel {job.id}"
        )
        leave(ExitCode.INTERRUPTED)
