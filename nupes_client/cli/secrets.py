"""`nupes secrets`: set, list, delete."""

from __future__ import annotations

import os
import sys
from datetime import datetime
from typing import Annotated

import typer

from nupes_client.cli import options as o

app = typer.Typer(help="Tokens that jobs take to a hub: stored encrypted, never shown.", no_args_is_help=True)

SecretName = Annotated[str, typer.Argument(metavar="NAME", help="What jobs know it by.", show_default=False)]


@app.command("set")
def set_secret(
    name: SecretName,
    from_env: Annotated[
        str | None,
        typer.Option("--from-env", metavar="VARIABLE", help="Read the value from this variable of the environment."),
    ] = None,
    json: o.Json = False,
) -> None:
    """Store a hub token, or replace it; the value comes from a prompt, standard input or a variable, not an option."""
    from nupes_client.cli import output
    from nupes_client.client import Client

    value = _asked(name) if from_env is None else _variable(from_env)
    with Client() as client:
        stored = client.secrets.set(name, value)
    if json:
        output.print_json(stored)
    else:
        output.print_line(f"secret {stored.name} is stored")


@app.command("list")
def list_secrets(json: o.Json = False) -> None:
    """List secrets, newest first, without their values."""
    from nupes_client.cli import output
    from nupes_client.client import Client

    with Client() as client:
        found = list(client.secrets.list())
    if json:
        output.print_json(found)
        return
    output.print_table(
        ("secret", "kind", "set (UTC)", "last used (UTC)"),
        [(each.name, each.kind, _moment(each.updated_at), _moment(each.last_used_at)) for each in found],
        empty="no secrets yet; nupes secrets set NAME stores one",
    )


@app.command()
def delete(name: SecretName) -> None:
    """Delete a secret; jobs that name it fail when they need it."""
    from nupes_client.cli import output
    from nupes_client.client import Client

    with Client() as client:
        client.secrets.delete(name)
    output.note(f"secret {name} is deleted")


def _moment(moment: datetime | None) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}" if moment else ""


def _asked(name: str) -> str:
    if sys.stdin.isatty():
        value: str = typer.prompt(f"value of {name}", hide_input=True, err=True)
        return value.strip()
    return sys.stdin.read().strip()


def _variable(name: str) -> str:
    from nupes_client.cli.wish import WishError

    value = os.environ.get(name, "").strip()
    if not value:
        raise WishError(f"--from-env {name}: there is no such variable, or it is empty")
    return value
