"""Routes of pages: not in the OpenAPI document, and with errors that a browser can show.

To a client that does not ask for HTML they answer as the API does: the same problems, 401 without a key, 404 for what
is another tenant's.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from app.core import sessions
from app.core.handlers import PROBLEMS
from app.core.problems import ProblemError
from app.web.policy import HEADERS
from app.web.queries import is_tidy, tidy
from app.web.rendering import page

LOGIN = "/login"


class PageRoute(APIRoute):
    """A route whose errors are pages for browsers."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap the handler that FastAPI makes of the endpoint."""
        handle = super().get_route_handler()

        async def with_error_pages(request: Request) -> Response:
            query = request.url.query
            if request.method == "GET" and not is_tidy(query):
                return RedirectResponse(f"{request.url.path}?{tidy(query)}".rstrip("?"), 303, headers=HEADERS)
            try:
                return await handle(request)
            except Exception as error:
                problem = _problem(error)
                if problem is None or not wants_html(request):
                    raise
                return _sign_in(request) if problem.status == 401 else _error_page(request, problem)

        return with_error_pages


def pages() -> APIRouter:
    """A router for pages."""
    return APIRouter(route_class=PageRoute, include_in_schema=False)


def wants_html(request: Request) -> bool:
    """Whether a browser asks, or htmx for it."""
    return "text/html" in request.headers.get("accept", "") or "hx-request" in request.headers


def _problem(error: Exception) -> ProblemError | None:
    convert = next((PROBLEMS[kind] for kind in type(error).__mro__ if kind in PROBLEMS), None)
    return convert(error) if convert else None


def _error_page(request: Request, problem: ProblemError) -> Response:
    response = page(request, "error.html", problem.status, problem=problem)
    response.headers.update(problem.headers)
    return response


def _sign_in(request: Request) -> Response:
    """To the form, and from there back here; a cookie that opens nothing any more is dropped."""
    wanted = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    target = f"{LOGIN}?next={quote(wanted, safe='/')}"
    response: Response
    if "hx-request" in request.headers:  # a redirect would be followed inside the fragment
        response = Response(status_code=401, headers={**HEADERS, "HX-Redirect": target})
    else:
        response = RedirectResponse(target, 303, headers=HEADERS)
    response.delete_cookie(sessions.COOKIE)
    return response
