"""Addresses that lead nowhere: a page for browsers, a problem for everybody else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from app.core.problems import ProblemError
from app.web.rendering import page
from app.web.routing import wants_html

_API = "/v1/"


def install(app: FastAPI) -> None:
    """Answer browsers that ask for no page there is; what the app answers otherwise stays as it is."""
    app.add_exception_handler(HTTPException, _handler(app.exception_handlers[HTTPException]))


def _handler(otherwise: Callable[[Request, Any], Any]) -> Callable[[Request, Exception], Any]:
    async def handle(request: Request, exception: Exception) -> Response:
        missing = isinstance(exception, HTTPException) and exception.status_code == 404
        if not missing or request.url.path.startswith(_API) or not wants_html(request):
            answer: Response = await otherwise(request, exception)
            return answer
        problem = ProblemError(404, "not_found", "Page not found", f"There is no page at {request.url.path}.")
        return page(request, "error.html", 404, problem=problem)

    return handle
