"""405: the answer names every method of the path, not those of the one route that the framework looked at."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from app.core.handlers import from_http
from app.core.problems import problem_response


def install(app: FastAPI, routers: Sequence[APIRouter]) -> None:
    """Make `app` answer 405 with a full `Allow` (RFC 9110 §15.5.6)."""
    routes = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]
    app.add_exception_handler(405, _handler(routes))


def _handler(routes: Sequence[APIRoute]) -> Callable[[Request, Any], Coroutine[Any, Any, Response]]:
    async def handle(request: Request, exception: HTTPException) -> Response:
        problem = from_http(exception)
        if methods := _methods(routes, request.scope["path"]):
            problem.headers["Allow"] = ", ".join(methods)
        return problem_response(request, problem)

    return handle


def _methods(routes: Sequence[APIRoute], path: str) -> list[str]:
    """Of the routes with the pattern that comes first: `/v1/jobs/compare` is a path of its own beside `{job_id}`."""
    pattern = next((route.path_format for route in routes if route.path_regex.match(path)), None)
    return sorted({method for route in routes if route.path_format == pattern for method in route.methods or ()})
