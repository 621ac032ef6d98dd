"""`nupes keys`: list, create, show, rotate, revoke."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from nupes_client.cli import options as o

if TYPE_CHECKING:
    from nupes_client.schemas.keys import Key, KeyCreated

app = typer.Typer(help="API keys: list them, or make, show, rotate and revoke one.")

_SPAN = re.compile(r"(\d+)([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}

KeyId = Annotated[str, typer.Argument(metavar="KEY", help="Id of the key (key_…).")]


class KeyScope(StrEnum):
    """What a key opens."""

    JOBS_READ = "jobs:read"
    JOBS_WRITE = "jobs:write"
    MODELS_READ = "models:read"
    MODELS_WRITE = "models:write"
    ARTIFACTS_READ = "artifacts:read"
    WEBHOOKS_MANAGE = "webhooks:manage"
    SECRETS_MANAGE = "secrets:manage"
    KEYS_MANAGE = "keys:manage"
    ADMIN = "admin"


@app.callback(invoke_without_command=True)
def keys(context: typer.Context, json: o.Json = False) -> None:
    """List API keys; subcommands make, show, rotate and revoke one."""
    if context.invoked_subcommand is None:
        list_keys(json=json)


def login_link(json: o.Json = False) -> None:
    """Print a link that signs a browser in to the dashboard, once and within ten minutes."""
    from nupes_client.cli import output
    from nupes_client.client import Client

    with Client() as client:
        made = client.keys.login_link()
        url = f"{client.url}{made.path}"
    if json:
        output.print_json({"url": url, "expires_at": made.expires_at.isoformat()})
    else:
        output.print_line(url)


@app.command("list")
def list_keys(json: o.Json = False) -> None:
    """List API keys, newest first."""
    from nupes_client.cli import output
    from nupes_client.client import Client

    with Client() as client:
        found = list(client.keys.list())
    if json:
        output.print_json(found)
    else:
        _print_table(found)


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the key is for.")],
    scope: Annotated[list[KeyScope], typer.Option("--scope", help="What it opens; repeatable.")],
    expires_in: Annotated[
        str | None, typer.Option("--expires-in", metavar="SPAN", help="Such as 90d, 12h or 30m; default: never.")
    ] = None,
    json: o.Json = False,
) -> None:
    """Make a key and print its secret, which is shown this once."""
    from nupes_client.client import Client

    expires_at = None if expires_in is None else datetime.now(UTC) + _span("--expires-in", expires_in)
    with Client() as client:
        _print_secret(client.keys.create(name, [item.value for item in scope], expires_at=expires_at), as_json=json)


@app.command()
def show(key_id: KeyId, json: o.Json = False) -> None:
    """Show one key."""
    from nupes_client.cli import output
    from nupes_client.client import Client

    with Client() as client:
        found = client.keys.get(key_id)
    if json:
        output.print_json(found)
    else:
        _print_table([found])


@app.command()
def rotate(
    key_id: KeyId,
    overlap: Annotated[
        str,
        typer.Option("--overlap", metavar="SPAN", help="For how long the old secret stays valid, such as 0s or 7d."),
    ] = "24h",
    json: o.Json = False,
) -> None:
    """Give a key a new secret and print it; the old one stays valid for a while."""
    from nupes_client.client import Client

    with Client() as client:
        made = client.keys.rotate(key_id, overlap_s=int(_span("--overlap", overlap).total_seconds()))
        _print_secret(made, as_json=json)


@app.command()
def revoke(key_id: KeyId, json: o.Json = False) -> None:
    """Make a key useless from now on."""
    from nupes_client.cli import output
    from nupes_client.client import Client

    with Client() as client:
        client.keys.revoke(key_id)
        found = client.keys.get(key_id) if json else None
    if found is not None:
        output.print_json(found)
    else:
        output.print_line(f"key {key_id} revoked")


def _print_secret(made: KeyCreated, *, as_json: bool) -> None:
    from nupes_client.cli import output

    until = f"; the old one is valid until {_moment(made.previous_until)} UTC" if made.previous_until else ""
    output.note(f"key {made.id}; the secret is shown this once{until}")
    if as_json:
        output.print_json(made)
    else:
        output.print_line(made.secret)


def _print_table(found: list[Key]) -> None:
    from nupes_client.cli import output

    output.print_table(
        ("key", "name", "starts with", "scopes", "last used (UTC)", "expires (UTC)", "revoked (UTC)"),
        [
            (
                key.id,
                key.name,
                key.prefix,
                " ".join(key.scopes),
                *(_moment(moment) for moment in (key.last_used_at, key.expires_at, key.revoked_at)),
            )
            for key in found
        ],
    )


def _moment(moment: datetime | None) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}" if moment else ""


def _span(option: str, text: str) -> timedelta:
    from nupes_client.cli.wish import WishError

    match = _SPAN.fullmatch(text)
    if match is None or int(match[1]) > 10**6:
        raise WishError(f"{option} {text!r} is no span of time", hint="For example 30s, 15m, 12h or 90d.")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})
