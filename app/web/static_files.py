"""`/static`: our own files and, below `vendor/`, third-party ones that a build step puts there."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from app.core.problems import ProblemError
from app.web.vendoring.files import listed

PATH = "/static"
FOLDER = Path(__file__).with_name("static")
HINT = "Run `make setup` in the source folder, or `python -m app.web.vendoring`; then reload the page."


class Static(StaticFiles):
    """Files that are revalidated on every use; one of a build step that was not run is an error that says so."""

    def __init__(self) -> None:
        super().__init__(directory=FOLDER)

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Serve one file."""
        try:
            response = await super().get_response(path, scope)
        except HTTPException as error:
            if error.status_code == 404 and Path(path).name in missing_files():
                raise not_built() from error
            raise
        response.headers["Cache-Control"] = "no-cache"
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response


@cache
def _vendored() -> tuple[Path, ...]:
    return tuple(file.target for file in listed())


def missing_files() -> list[str]:
    """Names of third-party files that are not there."""
    return [path.name for path in _vendored() if not path.is_file()]


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
