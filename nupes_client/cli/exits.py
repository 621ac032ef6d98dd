"""Exit codes: what a pipeline can branch on."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from nupes_client.schemas.jobs import Job


class ExitCode(IntEnum):
    """The promise of the command line to scripts."""

    OK = 0
    GATE_FAILED = 2
    JOB_FAILED = 3
    CANCELLED = 4
    WAIT_TIMEOUT = 5
    USAGE = 6
    """Wrong usage, missing or refused key, refused request, unreachable service: nothing was measured."""
    INTERRUPTED = 130


class NupesExit(Exception):  # noqa: N818
    """Leave the command with an exit code; what there was to say has been said."""

    def __init__(self, code: ExitCode) -> None:
        super().__init__(code)
        self.code = code


def leave(code: ExitCode) -> NoReturn:
    """Leave the command.

    Raises:
        NupesExit: always.
    """
    raise NupesExit(code)


def code_of(job: Job) -> ExitCode:
    """Return the exit code that a job stands for; a job that has not ended is fine so far."""
    from nupes_client.schemas.jobs import JobStatus

    by_status = {JobStatus.FAILED: ExitCode.JOB_FAILED, JobStatus.CANCELLED: ExitCode.CANCELLED}
    if job.status in by_status:
        return by_status[job.status]
    return ExitCode.GATE_FAILED if job.verdict == "failed" else ExitCode.OK
