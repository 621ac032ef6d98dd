"""`nupes usage`, `nupes audit`."""

from __future__ import annotations

from typing import Annotated

import typer

from nupes_client.cli import options as o


def usage(json: o.Json = False) -> None:
    """Show what your tenant uses of what it may."""
    from nupes_client.cli import output
    from nupes_client.client import Client
    from nupes_client.schemas.usage import Meter

    with Client() as client:
        found = client.usage()
    if json:
        output.print_json(found)
        return
    meters = {name: value for name, value in found if isinstance(value, Meter)}
    rows = [
        (name.replace("_", " "), f"{meter.used:,.0f}", "none" if meter.limit is None else f"{meter.limit:,}")
        for name, meter in meters.items()
    ]
    rows.append(("compute seconds this month", f"{found.compute_seconds_this_month:,.1f}", "none"))
    output.print_table(("what", "used", "limit"), rows, numbers=("used", "limit"))


def audit(
    resource: Annotated[
        str | None, typer.Option("--resource", metavar="ID", help="Only what was done to this.")
    ] = None,
    limit: o.Limit = 20,
    json: o.Json = False,
) -> None:
    """List who changed what, newest first (scope admin)."""
    from nupes_client.cli import output
    from nupes_client.client import Client

    with Client() as client:
        found = list(client.audit(resource_id=resource, limit=limit))
    if json:
        output.print_json(found)
        return
    output.print_table(
        ("when (UTC)", "action", "resource", "key", "from", "request"),
        [
            (
                f"{entry.created_at:%Y-%m-%d %H:%M:%S}",
                entry.action.value,
                entry.resource_id,
                entry.key_id,
                entry.address,
                entry.request_id,
            )
            for entry in found
        ],
    )
