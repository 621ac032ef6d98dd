"""What a child says of the exception that ended it: nothing that leaks a path or a secret. Standard library only."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

_HOST_MEMORY = "can't allocate memory"
"""What torch's CPU allocator says in its RuntimeError."""


DISK_FULL: dict[str, Any] = {
    "code": "disk_full",
    "message": "no room left on the disk",
    "hint": "Free some space on the worker's disk and retry.",
}


class TypedError(Exception):
    """An error of our children with a code of the closed list."""

    def __init__(self, code: str, message: str, *, hint: str | None = None, retryable: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.retryable = retryable


def describe(error: BaseException, *folders: Path) -> dict[str, Any]:
    """Return (code, message, hint, retryable) of any exception, as an `error` event carries them.

    Typed errors (of `nupes_core`, of the fetcher) bring `code`, `message` and `hint` along; names of files in
    `folders`, inner ones first, are kept, the folders' own paths are not.
    """
    for matches, reason in _KINDS:
        if any(matches(cause) for cause in _causes(error)):
            return reason
    code, message = getattr(error, "code", None), getattr(error, "message", None)
    if not isinstance(code, str) or not isinstance(message, str):
        return {"code": "internal", "message": f"an internal error ({type(error).__name__})"}
    hint, retryable = getattr(error, "hint", None), bool(getattr(error, "retryable", False))
    return {"code": code, "message": _without(message, folders), "hint": hint, "retryable": retryable}


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _without(message: str, folders: Sequence[Path]) -> str:
    for folder in folders:
        message = message.replace(f"{folder}/", "").replace(str(folder), "the work folder")
    return message


def _is_device_memory(error: BaseException) -> bool:
    return type(error).__name__ == "OutOfMemoryError"


def _is_host_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _HOST_MEMORY in str(error))


def is_full_disk(error: BaseException) -> bool:
    """Whether the system said that there is no room."""
    return isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}


def _is_file_limit(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno == errno.EFBIG


_KINDS = (
    (
        _is_device_memory,
        {
            "code": "oom_device",
            "message": "not enough memory on the device",
            "hint": "Use a device with more memory, or a worker of class cpu.",
        },
    ),
    (
        _is_host_memory,
        {
            "code": "oom_host",
            "message": "not enough memory",
            "hint": "Use a machine with more memory; POST /v1/plans predicts what a job needs.",
        },
    ),
    (is_full_disk, DISK_FULL),
    (
        _is_file_limit,
        {
            "code": "internal",
            "message": "a file grew far beyond what was planned for the job",
            "hint": "Report it with the job id.",
        },
    ),
)
