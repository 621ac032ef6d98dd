"""`nupes upload`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nupes_client.cli import options as o


def upload(
    path: Annotated[Path, typer.Argument(help="A model folder, or a single file such as a text.", show_default=False)],
    json: o.Json = False,
) -> None:
    """Send a model folder (prints its mdl_… id) or a single file (prints its upl_… id)."""
    from nupes_client.cli import output
    from nupes_client.cli.progress import transfer
    from nupes_client.cli.submitting import registered_model
    from nupes_client.client import Client
    from nupes_client.errors import missing_file
    from nupes_client.schemas.models import Model
    from nupes_client.schemas.uploads import Upload

    if not path.exists():
        raise missing_file(path)
    sent: Model | Upload
    with Client() as client:
        if path.is_dir():
            sent = registered_model(client, str(path))
        else:
            with transfer("sent", path.stat().st_size) as advance:
                sent = client.uploads.send(path, advance=advance)
    if json:
        output.print_json(sent)
    else:
        output.print_line(sent.id)
