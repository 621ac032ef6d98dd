"""`/static`: our own files and, below `vendor/`, third-party ones that a build step puts there, packed.

Browsers take gzip, so a packed file goes out as it lies there; a client that does not say so gets it unpacked.
"""

from __future__ import annotations

import gzip
from functools import cache
from mimetypes import guess_type
from pathlib import Path

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from app.core.negotiation import accepts_coding
from app.core.problems import ProblemError
from app.web.vendoring.files import PACKED, listed

PATH = "/static"
FOLDER = Path(__file__).with_name("static")
HINT = "Run `make setup` in the source folder, or `python -m app.web.vendoring`; then reload the page."


class Static(StaticFiles):
    """Files that are revalidated on every use; one of a build step that was not run is an error that says so."""

    def __init__(self) -> None:
        super().__init__(directory=FOLDER)

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Serve one file."""
        file = _vendored().get(path)
        response = await (self._packed(path, file, scope) if file else super().get_response(path, scope))
        response.headers["Cache-Control"] = "no-cache"
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    async def _packed(self, path: str, file: Path, scope: Scope) -> Response:
        try:
            response = await super().get_response(path + PACKED, scope)
        except HTTPException as error:
            if error.status_code != 404:
                raise
            raise not_built() from error
        if accepts_coding(Request(scope), "gzip"):
            response.headers["Content-Encoding"] = "gzip"
        else:
            content = await run_in_threadpool(lambda: gzip.decompress(file.read_bytes()))
            response = Response(content, media_type=guess_type(path)[0])
        response.headers["Vary"] = "Accept-Encoding"
        return response


@cache
def _vendored() -> dict[str, Path]:
    """Packed files by the path that serves them, below `/static`."""
    return {file.target.relative_to(FOLDER).as_posix().removesuffix(PACKED): file.target for file in listed()}


def missing_files() -> list[str]:
    """Third-party files that are not there."""
    return [path for path, file in _vendored().items() if not file.is_file()]


def not_built() -> ProblemError:
    """The answer where the third-party files are needed."""
    missing = ", ".join(missing_files())
    return ProblemError(
        503,
        "dashboard_not_built",
        "Dashboard not built",
        f"third-party front-end files are missing: {missing}",
        hint=HINT,
    )
