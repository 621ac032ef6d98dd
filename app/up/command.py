"""Options of `nupes up`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

NEEDED = ("uvicorn", "fastapi", "sqlalchemy", "alembic", "celery")
FAILED = 1


def up(
    data_dir: Annotated[
        Path | None,
        typer.Option("--data-dir", help="Everything is kept here.", show_default="NUPES_DATA_DIR or ~/.nupes"),
    ] = None,
    host: Annotated[
        str | None, typer.Option("--host", help="Address to listen on.", show_default="NUPES_HOST or 127.0.0.1")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option("--port", min=0, max=65535, help="Port; 0: any free one.", show_default="NUPES_PORT or 8000"),
    ] = None,
    workers: Annotated[int, typer.Option("--workers", min=0, help="Jobs that can run at the same time.")] = 1,
    ready_file: Annotated[
        Path | None, typer.Option("--ready-file", help="Write URL and key here as JSON (0600) once all is ready.")
    ] = None,
) -> None:
    """Run the whole service on this machine until Ctrl-C: API, workers, database, storage."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        typer.echo(
            f"error: `nupes up` needs {', '.join(missing)}\n  try: pip install '.[core,server]' in the source",
            err=True,
        )
        raise typer.Exit(FAILED)
    from app.up.folder import UpError
    from app.up.service import Service

    try:
        Service(data_dir=data_dir, host=host, port=port, workers=workers, ready_file=ready_file).run()
    except UpError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(FAILED) from error
