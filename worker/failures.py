"""Why jobs fail: the closed list of codes, and which failures are worth another attempt."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from typing import Any

from sqlalchemy.exc import InterfaceError, InternalError, OperationalError

from nupes_client.schemas.jobs import JobError, JobPhase
from nupes_client.schemas.problems import JobErrorCode
from worker.reasons import DISK_FULL, is_full_disk

MAX_MESSAGE = 2000
"""Characters of a child's message that are kept."""

_PAUSES: Mapping[JobErrorCode, int] = {
    JobErrorCode.DISK_FULL: 8,
    JobErrorCode.DOWNLOAD_FAILED: 1,
    JobErrorCode.PUBLISH_FAILED: 1,
    JobErrorCode.PUSH_FAILED: 1,
}
"""Trouble of the surroundings, which passes: how many pauses to wait. Housekeeping frees disks every two minutes."""


DATABASE_AWAY = (OperationalError, InterfaceError, InternalError)
"""The database does not answer; another error would come again with the same values."""


class JobFailedError(Exception):
    """The attempt is over; `retryable` says whether another one may end better, `pauses` how long it should wait."""

    def __init__(
        self,
        code: JobErrorCode,
        message: str,
        *,
        hint: str | None = None,
        retryable: bool = False,
        pauses: int | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.retryable = retryable or code is JobErrorCode.DISK_FULL
        self.pauses = _PAUSES.get(code, 0) if pauses is None else pauses

    def pause_s(self, unit_s: float, attempt: int) -> float:
        """How long to wait after the attempt of that number, from 1: twice as long each time."""
        return self.pauses * unit_s * 2.0 ** (attempt - 1)

    def to_error(self, phase: JobPhase | None) -> JobError:
        """Return what the user sees."""
        return JobError(code=self.code, message=self.message, phase=phase, retryable=self.retryable, hint=self.hint)


def reported_failure(event: Mapping[str, Any]) -> JobFailedError:
    """Build from the event in which a child gave up; a code outside the list counts as internal."""
    code, message = str(event["code"]), str(event["message"])[:MAX_MESSAGE]
    known = JobErrorCode(code) if code in set(JobErrorCode) else JobErrorCode.INTERNAL
    return JobFailedError(known, message, hint=event.get("hint"), retryable=bool(event.get("retryable")))


def exit_failure(status: int) -> JobFailedError:
    """Return why a child ended that reported nothing."""
    if status == -signal.SIGKILL:
        return JobFailedError(
            JobErrorCode.OOM_HOST,
            "the process that did the work was killed, most likely because the machine ran out of memory",
            hint="Retry on a machine with more memory; POST /v1/plans predicts what a job needs.",
            retryable=True,
        )
    how = f"by signal {-status}" if status < 0 else f"with status {status}"
    return JobFailedError(
        JobErrorCode.INTERNAL,
        f"the process that did the work ended {how} without a reason",
        hint="Retry; if it happens again, report it with the job id.",
        retryable=status < 0,
    )


def timeout_failure(timeout_s: float) -> JobFailedError:
    """Return the failure of a job that ran longer than allowed."""
    return JobFailedError(
        JobErrorCode.TIMEOUT, f"the job ran longer than its timeout_s of {timeout_s:g}", hint="Raise timeout_s."
    )


def unexpected_failure(error: Exception) -> JobFailedError:
    """Return what the user sees of an error in the worker itself: what surrounds it may get better, a defect does not.

    Nothing of the exception's own text is shown: it could hold a path or a secret.
    """
    if is_full_disk(error):
        return reported_failure(DISK_FULL)
    if isinstance(error, DATABASE_AWAY):
        return JobFailedError(
            JobErrorCode.INTERNAL,
            "the worker's database did not answer",
            hint="Retry; if it happens again, report it with the job id.",
            retryable=True,
            pauses=1,
        )
    return JobFailedError(
        JobErrorCode.INTERNAL, "an internal error", hint="Report it with the job id; the worker's log has the details."
    )
