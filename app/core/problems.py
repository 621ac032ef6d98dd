"""Errors as RFC 9457 problem details: one base class, one shape on the wire."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus

from starlette.requests import HTTPConnection
from starlette.responses import Response

from nupes_client.schemas.problems import FieldError, Problem

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:nupes:problem:"


class ProblemError(Exception):
    """An error that the client sees as it is raised.

    Args:
        status: HTTP status, 4xx or 5xx.
        code: stable and machine readable, e.g. `disk_full`.
        title: what kind of error this is; the same for all errors of a code.
        detail: what was wrong this time, quoting the offending value.
        hint: what to do next.
        retryable: whether the very same request may succeed later.
        headers: further response headers, e.g. `Retry-After`.
        errors: the fields at fault.
    """

    def __init__(
        self,
        status: int,
        code: str,
        title: str,
        detail: str,
        *,
        hint: str | None = None,
        retryable: bool = False,
        headers: Mapping[str, str] | None = None,
        errors: Sequence[FieldError] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.title = title
        self.detail = detail
        self.hint = hint
        self.retryable = retryable
        self.headers = dict(headers or {})
        self.errors = list(errors) if errors is not None else None


class NotFoundError(ProblemError):
    """No such thing, or it belongs to another tenant: the two look alike on purpose."""

    def __init__(self, kind: str, identifier: str) -> None:
        super().__init__(
            404, "not_found", "Not found", f"there is no {kind} {identifier!r}", hint="Check the id and the API key."
        )


class ConflictError(ProblemError):
    """The state of the resource does not allow the request."""

    def __init__(self, code: str, detail: str, *, hint: str | None = None, retryable: bool = False) -> None:
        super().__init__(409, code, "Conflict", detail, hint=hint, retryable=retryable)


class PreconditionFailedError(ProblemError):
    """`If-Match` names another version than the current one."""

    def __init__(self, current: str) -> None:
        super().__init__(
            412,
            "precondition_failed",
            "Precondition failed",
            f"the resource has changed; its ETag is now {current}",
            hint="Read it again and repeat the change.",
        )


class ValidationProblem(ProblemError):  # noqa: N818
    """The request is understood and can not be honoured as it is; `pointer` names the field when there is one."""

    def __init__(
        self,
        detail: str,
        *,
        code: str = "validation_error",
        pointer: str | None = None,
        hint: str | None = None,
        errors: Sequence[FieldError] | None = None,
    ) -> None:
        if pointer is not None:
            errors = [FieldError(pointer=pointer, code=code, message=detail), *(errors or [])]
        super().__init__(422, code, "Invalid request", detail, hint=hint, errors=errors or [])


class TooLargeError(ProblemError):
    """The body is larger than announced or allowed."""

    def __init__(self, detail: str, *, hint: str | None = None) -> None:
        super().__init__(413, "too_large", "Content too large", detail, hint=hint)


class UnauthorizedError(ProblemError):
    """No key, none that this service knows, or one whose time is over."""

    def __init__(
        self,
        detail: str,
        *,
        code: str = "unauthorized",
        hint: str = "Send `Authorization: Bearer nupes_…`; `nupes up` prints a key.",
    ) -> None:
        super().__init__(
            401,
            code,
            "Unauthorized",
            detail,
            hint=hint,
            headers={"WWW-Authenticate": 'Bearer realm="nupes"'},
        )


class ForbiddenError(ProblemError):
    """The key is known and lacks the scope."""

    def __init__(self, scope: str) -> None:
        super().__init__(
            403,
            "insufficient_scope",
            "Forbidden",
            f"this key lacks the scope {scope!r}",
            hint="Use a key that has it; a key with `keys:manage` can make one.",
        )


class TooManyRequestsError(ProblemError):
    """A limit in time: of requests, of failed authentications, of jobs."""

    def __init__(self, code: str, detail: str, *, retry_after_s: int, hint: str | None = None) -> None:
        super().__init__(
            429,
            code,
            "Too many requests",
            detail,
            hint=hint or f"Try again in {retry_after_s} seconds; GET /v1/usage shows all limits.",
            retryable=True,
            headers={"Retry-After": str(retry_after_s)},
        )


class UnavailableError(ProblemError):
    """A part of the service, or the hub, does not answer now."""

    def __init__(
        self, code: str, detail: str, *, status: int = 503, retry_after_s: int = 5, hint: str | None = None
    ) -> None:
        super().__init__(
            status,
            code,
            HTTPStatus(status).phrase,
            detail,
            hint=hint or f"Try again in {retry_after_s} seconds.",
            retryable=True,
            headers={"Retry-After": str(retry_after_s)},
        )


class DiskFullProblem(ProblemError):  # noqa: N818
    """There is no room for what the request would store."""

    def __init__(self, detail: str) -> None:
        super().__init__(
            507,
            "disk_full",
            "Insufficient storage",
            detail,
            hint="Delete uploads, models or artifacts, or give the service more disk.",
            retryable=True,
        )


def problem_response(connection: HTTPConnection, error: ProblemError) -> Response:
    """Render an error for the request it belongs to."""
    problem = Problem(
        type=TYPE_PREFIX + error.code,
        title=error.title,
        status=error.status,
        detail=error.detail,
        instance=connection.url.path,
        code=error.code,
        request_id=getattr(connection.state, "request_id", ""),
        retryable=error.retryable,
        hint=error.hint,
        errors=error.errors,
    )
    # Escaped to ASCII: a detail may quote a lone surrogate, which UTF-8 can not carry.
    body = json.dumps(problem.model_dump(mode="python", exclude_none=True), ensure_ascii=True).encode("ascii")
    return Response(body, error.status, media_type=MEDIA_TYPE, headers=error.headers)
