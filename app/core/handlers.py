"""From every exception that can leave an endpoint to a problem: ours, the framework's, the database's, the core's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import DataError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from app.core.problems import (
    DiskFullProblem,
    ProblemError,
    UnavailableError,
    ValidationProblem,
    problem_response,
)
from app.storage.errors import BlobNotFoundError, DiskFullError, PartialBusyError, StorageError
from nupes_client.schemas.problems import FieldError
from nupes_client.schemas.words import in_plain_words
from nupes_core.errors import NupesError

_CODES = {404: "not_found", 405: "method_not_allowed", 413: "too_large", 415: "unsupported_media_type"}
_NO_SUCH_ENDPOINT = "GET /openapi.json describes every endpoint."
_WORDS = {"model_attributes_type": "must be a JSON object, sent with Content-Type: application/json"}
"""Where the words for values do not say what to do with a body."""
MAX_ERRORS = 100
"""Told in one answer: a body of 2 MB can hold a hundred thousand, and nobody mends more at once."""


def install(app: FastAPI) -> None:
    """Make `app` answer every exception in `PROBLEMS` with a problem."""
    for kind, convert in PROBLEMS.items():
        app.add_exception_handler(kind, _handler(convert))


def _handler(convert: Callable[[Any], ProblemError]) -> Callable[[Request, Exception], Any]:
    async def handle(request: Request, exception: Exception) -> Response:
        return problem_response(request, convert(exception))

    return handle


def internal_error() -> ProblemError:
    """The answer to an exception nobody expected; what happened stands in the log under the request id."""
    return ProblemError(
        500,
        "internal",
        "Internal error",
        "something went wrong inside the service",
        hint="Report the request_id; the log of the service has the details.",
        retryable=True,
    )


def from_http(exception: HTTPException) -> ProblemError:
    """The problem of what the framework refuses."""
    status = exception.status_code
    title = HTTPStatus(status).phrase
    code = _CODES.get(status, title.lower().replace(" ", "_").replace("-", "_"))
    hint = _NO_SUCH_ENDPOINT if status in (404, 405) else None
    return ProblemError(status, code, title, str(exception.detail), hint=hint, headers=exception.headers)


def _from_validation(exception: RequestValidationError) -> ProblemError:
    found = exception.errors()
    errors = [_field_error(error, exception.body) for error in found[:MAX_ERRORS]]
    first = errors[0]
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    detail = f"{first.pointer or 'the body'}: {first.message}{more}"
    return ValidationProblem(detail, errors=errors, hint="Correct the fields listed in `errors`.")


def _field_error(error: dict[str, Any], body: Any) -> FieldError:
    message = _WORDS.get(error["type"]) or in_plain_words(error)
    return FieldError(pointer=_pointer(error, body), code=error["type"], message=message)


def _pointer(error: dict[str, Any], body: Any) -> str:
    """JSON pointer into the body; `/query/limit` and the like for what is not in the body."""
    place, *parts = error["loc"]
    if place != "body":
        return _join(error["loc"])
    if error["type"] == "json_invalid":
        return ""
    return _join(_real_parts(parts, body, missing=error["type"] == "missing"))


def _real_parts(parts: Sequence[Any], value: Any, *, missing: bool) -> list[Any]:
    """Leave out the parts that pydantic adds for the member of a union it took: they are not in the body."""
    kept = []
    for index, part in enumerate(parts):
        inside = (isinstance(value, dict) and part in value) or (
            isinstance(value, list) and isinstance(part, int) and part < len(value)
        )
        if inside:
            value = value[part]
        if inside or (missing and index == len(parts) - 1):
            kept.append(part)
    return kept


def _join(parts: Sequence[Any]) -> str:
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts)


def _from_core(exception: NupesError) -> ProblemError:
    return ValidationProblem(exception.message, code=exception.code, hint=exception.hint)


def _unstorable() -> ProblemError:
    return ValidationProblem("a value can not be stored: it holds characters that are not allowed")


def _from_busy_partial(_: PartialBusyError) -> ProblemError:
    return ProblemError(
        423,
        "upload_busy",
        "Locked",
        "another request appends to this upload",
        hint="Wait for its end, then ask with HEAD how far the upload is.",
        retryable=True,
        headers={"Retry-After": "1"},
    )


def _from_missing_blob(exception: BlobNotFoundError) -> ProblemError:
    return ProblemError(410, "content_gone", "Gone", str(exception), hint="The bytes were deleted; send them again.")


PROBLEMS: dict[type[Exception], Callable[[Any], ProblemError]] = {
    ProblemError: lambda exception: exception,
    HTTPException: from_http,
    RequestValidationError: _from_validation,
    NupesError: _from_core,
    DiskFullError: lambda exception: DiskFullProblem(str(exception)),
    BlobNotFoundError: _from_missing_blob,
    PartialBusyError: _from_busy_partial,
    StorageError: lambda exception: UnavailableError("storage_unavailable", str(exception)),
    OperationalError: lambda _: UnavailableError("database_unavailable", "the database does not answer"),
    # A server has ended a transaction that fell silent: this process was stopped in the middle of it.
    InternalError: lambda _: UnavailableError("database_unavailable", "the database ended the transaction"),
    PoolTimeoutError: lambda _: UnavailableError("overloaded", "all database connections are in use"),
    # What a text column can not hold, such as a NUL character on PostgreSQL.
    DataError: lambda _: _unstorable(),
    # A lone surrogate, which JSON can spell: of a model's config.json, say.
    UnicodeEncodeError: lambda _: _unstorable(),
}
