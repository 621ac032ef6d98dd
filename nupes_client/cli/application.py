"""The command line: commands of this package, commands of plug-ins, errors to exit codes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Annotated

import typer

from nupes_client.cli import (
    artifacts,
    doctor,
    jobs,
    keys,
    models,
    plan,
    quantize,
    reading,
    secrets,
    upload,
    usage,
    webhooks,
    workers,
)
from nupes_client.cli.exits import ExitCode, NupesExit
from nupes_client.errors import ApiError, NupesError, WaitTimeoutError

PLUGINS = "nupes.commands"
TYPER_USAGE_ERROR = 2

app = typer.Typer(
    name="nupes",
    help="Quantize models with NUPES, on this machine or on a service (NUPES_URL, NUPES_API_KEY).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 ok, 2 gate failed, 3 job failed, 4 cancelled, 5 waited too long, "
    "6 wrong usage, no access or no answer.",
)

COMMANDS: dict[str, Callable[..., None]] = {
    "quantize": quantize.quantize,
    "plan": plan.plan,
    "upload": upload.upload,
    "jobs": jobs.jobs,
    "job": jobs.job,
    "cancel": jobs.cancel,
    "retry": jobs.retry,
    "logs": reading.logs,
    "report": reading.report,
    "compare": reading.compare,
    "layers": jobs.layers,
    "metrics": jobs.metrics,
    "artifacts": artifacts.artifacts,
    "models": models.models,
    "usage": usage.usage,
    "audit": usage.audit,
    "workers": workers.workers,
    "login-link": keys.login_link,
    "doctor": doctor.doctor,
}


def main() -> None:
    """Run the command line and exit with its code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run the command line and return its exit code."""
    _add_plugins()
    try:
        app(arguments, prog_name="nupes")
    except NupesExit as exit_:
        return exit_.code
    except SystemExit as exit_:
        return ExitCode.USAGE if exit_.code == TYPER_USAGE_ERROR else _code(exit_)
    except NupesError as error:
        return _fail(error, as_json="--json" in arguments)
    except BrokenPipeError:  # `nupes jobs | head`
        sys.stderr.close()
        return ExitCode.OK
    return ExitCode.OK


def _code(exit_: SystemExit) -> int:
    return exit_.code if isinstance(exit_.code, int) else ExitCode.OK if exit_.code is None else ExitCode.USAGE


def _fail(error: NupesError, *, as_json: bool) -> int:
    from nupes_client.cli import output

    request = f" (request {error.request_id})" if isinstance(error, ApiError) and error.request_id else ""
    output.complain(f"{error}{request}", error.hint)
    if as_json:
        code = error.code if isinstance(error, ApiError) else type(error).__name__
        output.print_json({"error": {"code": code, "message": str(error), "hint": error.hint}})
    return ExitCode.WAIT_TIMEOUT if isinstance(error, WaitTimeoutError) else ExitCode.USAGE


def _add_plugins() -> None:
    known = {command.name for command in app.registered_commands}
    for entry in entry_points(group=PLUGINS):
        if entry.name not in known:
            try:
                app.command(entry.name)(entry.load())
            except ImportError as error:  # half an installation must not take the other commands away
                sys.stderr.write(f"nupes {entry.name} is not available: {error}\n")


def _print_version(asked: bool) -> None:
    if asked:
        from nupes_client.version import installed_version

        typer.echo(f"nupes {installed_version()}")
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Options of the command itself."""


for _name, _command in COMMANDS.items():
    app.command(_name)(_command)
app.add_typer(webhooks.app, name="webhooks")
app.add_typer(keys.app, name="keys")
app.add_typer(secrets.app, name="secrets")
