"""`nupes keys`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from nupes_client.cli import options as o


class KeyScope(StrEnum):
    """What a key opens."""

    JOBS_READ = "jobs:read"
    JOBS_WRITE = "jobs:write"
    MODELS_READ = "models:read"
    MODELS_WRITE = "models:write"
    ARTIFACTS_READ = "artifacts:read"
    WEBHOOKS_MANAGE = "webhooks:manage"
    KEYS_MANAGE = "keys:manage"
    ADMIN = "admin"


def keys(
    create: Annotated[str | None, typer.Option("--create", metavar="NAME", help="Make a key of this name.")] = None,
    scope: Annotated[list[KeyScope] | None, typer.Option("--scope", help="What the new key opens.")] = None,
    revoke: Annotated[str | None, typer.Option("--revoke", metavar="KEY", help="Make a key useless (key_…).")] = None,
    json: o.Json = False,
) -> None:
    """List API keys, make one, or revoke one."""
    from nupes_client.cli import output
    from nupes_client.cli.wish import WishError
    from nupes_client.client import Client

    if create is not None and not scope:
        raise WishError("--create needs at least one --scope", hint="--scope jobs:read --scope jobs:write")
    with Client() as client:
        if create is not None:
            made = client.keys.create(create, [item.value for item in scope or ()])
            output.note(f"key {made.id}; the secret is shown this once")
            if json:
                output.print_json(made)
            else:
                output.print_line(made.secret)
            return
        if revoke is not None:
            client.keys.revoke(revoke)
        found = list(client.keys.list())
    if json:
        output.print_json(found)
        return
    output.print_table(
        ("key", "name", "starts with", "scopes", "revoked (UTC)"),
        [
            (
                key.id,
                key.name,
                key.prefix,
                " ".join(key.scopes),
                f"{key.revoked_at:%Y-%m-%d %H:%M:%S}" if key.revoked_at else "",
            )
            for key in found
        ],
    )
