"""Why jobs fail: the closed list of codes, and which failures are worth another attempt."""

from __future__ import annotations

import signal

from nupes_client.schemas.jobs import JobError, JobPhase
from nupes_client.schemas.problems import JobErrorCode


class JobFailedError(Exception):
    """The attempt is over; `retryable` says whether another one may end better."""

    def __init__(self, code: JobErrorCode, message: str, *, hint: str | None = None, retryable: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.retryable = retryable

    def to_error(self, phase: JobPhase | None) -> JobError:
        """Return what the user sees."""
        return JobError(code=self.code, message=self.message, phase=phase, retryable=self.retryable, hint=self.hint)


def failure(code: str, message: str, *, hint: str | None = None, retryable: bool = False) -> JobFailedError:
    """Build from what a child reported; a code outside the list counts as internal."""
    known = JobErrorCode(code) if code in set(JobErrorCode) else JobErrorCode.INTERNAL
    return JobFailedError(known, message, hint=hint, retryable=retryable)


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


def internal_failure() -> JobFailedError:
    """Return what the user sees of a defect of ours: nothing that could hold a path or a secret."""
    return JobFailedError(
        JobErrorCode.INTERNAL, "an internal error", hint="Report it with the job id; the worker's log has the details."
    )
