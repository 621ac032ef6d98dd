"""`nupes models`."""

from __future__ import annotations

from nupes_client.cli import options as o


def models(limit: o.Limit = 20, json: o.Json = False) -> None:
    """List registered models, newest first."""
    from nupes_client.cli import output
    from nupes_client.client import Client

    with Client() as client:
        found = list(client.models.list(limit=limit))
    if json:
        output.print_json(found)
        return
    output.print_table(
        ("model", "name", "architecture", "parameters", "size", "dtype", "created (UTC)"),
        [
            (
                model.id,
                model.name,
                model.architecture,
                f"{model.params:,}",
                output.size(model.bytes),
                model.dtype,
                f"{model.created_at:%Y-%m-%d %H:%M:%S}",
            )
            for model in found
        ],
        numbers=("parameters", "size"),
        empty="no models yet; nupes upload FOLDER sends one",
    )
