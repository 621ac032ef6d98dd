"""How an attempt ends in which the worker itself ran into something."""

from __future__ import annotations

import errno

import pytest
from sqlalchemy.exc import OperationalError

from nupes_client.schemas.problems import JobErrorCode
from worker.failures import unexpected_failure


@pytest.mark.parametrize(
    ("error", "code", "again"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/secret/place"), JobErrorCode.DISK_FULL, True),
        (OperationalError("UPDATE jobs", {}, Exception("server closed")), JobErrorCode.INTERNAL, True),
        (ValueError("/secret/place"), JobErrorCode.INTERNAL, False),
        (PermissionError(errno.EACCES, "Permission denied", "/secret/place"), JobErrorCode.INTERNAL, False),
    ],
)
def test_trouble_that_passes_is_worth_another_attempt_and_a_defect_is_not(
    error: Exception, code: JobErrorCode, again: bool
) -> None:
    failure = unexpected_failure(error)
    assert (failure.code, failure.retryable, failure.pauses > 0) == (code, again, again)
    assert failure.hint
    assert "secret" not in failure.message + failure.hint
