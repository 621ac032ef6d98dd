"""What can go wrong between a user and the service. Every message says what to do next."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nupes_client.schemas.problems import FieldError, Problem


class NupesError(Exception):
    """Base of everything this package raises on purpose."""

    hint: str | None = None

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint or self.hint


class ConfigurationError(NupesError):
    """The address of the service or the key is missing or unusable."""


class LocalFileError(NupesError):
    """A file or folder on this machine can not be sent."""


class FileChangedError(LocalFileError):
    """A file changed while it was being sent."""

    hint = "Wait until nothing writes to the file, then upload it again."


class ServiceUnreachableError(NupesError):
    """No answer came, even after retrying."""


class ChecksumError(NupesError):
    """Bytes that arrived are not the ones that were announced."""


class UnsafePathError(NupesError):
    """The service named a file that would be written outside the target folder."""


class WaitTimeoutError(NupesError):
    """The job had not ended when the time to wait was over. It keeps running."""

    def __init__(self, job_id: str, timeout_s: float) -> None:
        super().__init__(
            f"job {job_id} had not ended after {timeout_s:g} s; it keeps running",
            hint=f"nupes job {job_id} --wait",
        )
        self.job_id = job_id


class ApiError(NupesError):
    """The service refused a request, in the words of its problem document (RFC 9457).

    Attributes:
        status: HTTP status.
        code: machine-readable code of the problem.
        request_id: quote it when asking the operator of the service.
        retryable: whether the same request may work later.
        errors: the invalid fields of a 422.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail or problem.title, hint=problem.hint)
        self.status: int = problem.status
        self.code: str = problem.code
        self.request_id: str = problem.request_id
        self.retryable: bool = problem.retryable
        self.errors: list[FieldError] = problem.errors or []

    def __str__(self) -> str:
        fields = "".join(f"\n  {error.pointer}: {error.message}" for error in self.errors)
        return f"{super().__str__()}{fields}"


class AuthenticationError(ApiError):
    """401: the key is missing, wrong or revoked."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        # The service speaks of headers; who uses this package sets a variable.
        self.hint = "Set NUPES_API_KEY to a key of this service; `nupes up` prints one on its first start."


class PermissionDeniedError(ApiError):
    """403: the key lacks a scope."""


class NotFoundError(ApiError):
    """404: no such thing, or it belongs to another tenant."""


class ConflictError(ApiError):
    """409 or 412: the state of the thing does not allow the request."""


class InvalidRequestError(ApiError):
    """400, 413, 415 or 422: the request itself is wrong."""


class RateLimitedError(ApiError):
    """429: too many requests, still after retrying."""


class ServerError(ApiError):
    """5xx: the service failed."""


_BY_STATUS: dict[int, type[ApiError]] = {
    400: InvalidRequestError,
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    409: ConflictError,
    410: NotFoundError,
    412: ConflictError,
    413: InvalidRequestError,
    415: InvalidRequestError,
    422: InvalidRequestError,
    429: RateLimitedError,
}


def api_error(problem: Problem) -> ApiError:
    """Return the exception class that fits the problem's status."""
    fallback = ServerError if problem.status >= 500 else ApiError
    return _BY_STATUS.get(problem.status, fallback)(problem)


def missing_file(path: Path) -> LocalFileError:
    """The error for a path that is not there."""
    return LocalFileError(f"{path}: no such file or folder", hint="Check the path.")
