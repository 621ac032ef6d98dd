"""Reference pages made from the code they describe."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import typer

from app.main import create_app
from app.settings import Settings
from nupes_client.cli.application import app as cli
from nupes_client.schemas.specs import JobCreate

Schema = Mapping[str, Any]

JSON = "application/json"


def api() -> str:
    """Every operation of the OpenAPI document."""
    document = create_app(Settings()).openapi()
    lines = [
        "# HTTP API",
        "",
        document["info"]["description"],
        "",
        "A running service has the document itself at `/openapi.json`. Requests carry `Authorization: Bearer KEY`.",
        "",
    ]
    for group, operations in _grouped(document["paths"]).items():
        lines += ["", f"## {group}"]
        for method, path, operation in operations:
            lines += _operation(method, path, operation)
    return "\n".join(lines) + "\n"


def _grouped(paths: Schema) -> dict[str, list[tuple[str, str, Schema]]]:
    groups: dict[str, list[tuple[str, str, Schema]]] = {}
    for path, item in paths.items():
        for method, operation in item.items():
            name = (operation.get("tags") or ["operations"])[0]
            groups.setdefault(name, []).append((method.upper(), path, operation))
    return groups


def _operation(method: str, path: str, operation: Schema) -> Iterator[str]:
    yield from ("", f"### `{method} {path}`", "", operation.get("description") or operation.get("summary", ""), "")
    parameters = operation.get("parameters", [])
    if parameters:
        yield from ("| parameter | in | type | |", "|---|---|---|---|")
        for each in parameters:
            text = _cell(each.get("description", ""))
            yield f"| `{each['name']}` | {each['in']} | {_type(each.get('schema', {}))} | {text} |"
        yield ""
    if body := operation.get("requestBody"):
        kinds = ", ".join(f"`{kind}` {_type(spec.get('schema', {}))}" for kind, spec in body["content"].items())
        yield from (f"Body: {kinds}", "")
    answers = [
        f"`{status}` {_type(answer.get('content', {}).get(JSON, {}).get('schema', {})) or _cell(answer['description'])}"
        for status, answer in operation["responses"].items()
    ]
    yield f"Answers: {', '.join(answers)}"


def _type(schema: Schema) -> str:
    if reference := schema.get("$ref"):
        return f"`{reference.rsplit('/', 1)[1]}`"
    for key in ("anyOf", "oneOf", "allOf"):
        if key in schema:
            return " or ".join(filter(None, (_type(each) for each in schema[key])))
    if "enum" in schema:
        return " / ".join(f"`{each}`" for each in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return str(schema.get("type", ""))


def job() -> str:
    """The body of `POST /v1/jobs`, field by field."""
    schema = JobCreate.model_json_schema()
    lines = ["# Job schema", "", "The body of `POST /v1/jobs`; `POST /v1/plans` takes the same.", ""]
    for name, part in {"JobCreate": schema, **schema["$defs"]}.items():
        if "properties" not in part:
            continue
        lines += [f"## {name}", "", _cell(inspect.cleandoc(part.get("description", ""))), ""]
        lines += ["| field | type | default | |", "|---|---|---|---|"]
        lines += [_field(key, value, part.get("required", [])) for key, value in part["properties"].items()]
        lines += [""]
    return "\n".join(lines) + "\n"


def _field(name: str, schema: Schema, required: list[str]) -> str:
    default = "required" if name in required else f"`{schema.get('default')}`"
    return f"| `{name}` | {_type(schema)} | {default} | {_cell(schema.get('description', ''))} |"


def settings() -> str:
    """Every setting of the service."""
    lines = ["# Settings", "", inspect.cleandoc(Settings.__doc__ or ""), ""]
    lines += ["| variable | default | |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        value = "~/.nupes" if name == "data_dir" else field.default  # not the home of who builds this
        default = "" if value in ("", None) else f"`{value}`"
        lines.append(f"| `NUPES_{name.upper()}` | {default} | {_cell(field.description or '')} |")
    return "\n".join(lines) + "\n"


def commands() -> str:
    """The help of every command."""
    root = typer.main.get_command(cli)
    lines = ["# Command line", "", "Exit codes: 0 ok, 2 gate failed, 3 job failed, 4 cancelled, 5 waited too long, "]
    lines += ["6 wrong usage, no access or no answer, 130 interrupted.", ""]
    for path, command in _leaves(root, ("nupes",)):
        lines += [f"## `{' '.join(path)}`", "", inspect.cleandoc(command.help or ""), ""]
        lines += _parameters(command)
    return "\n".join(lines) + "\n"


def _leaves(command: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    children = getattr(command, "commands", None)
    if children is None:
        yield path, command
        return
    for name, child in children.items():
        yield from _leaves(child, (*path, name))


def _parameters(command: Any) -> Iterator[str]:
    shown = [each for each in command.params if not getattr(each, "hidden", False)]
    if not shown:
        return
    yield from ("| option | default | |", "|---|---|---|")
    for each in shown:
        names = ", ".join(each.opts) if each.param_type_name == "option" else each.metavar or each.name.upper()
        said = each.default not in (None, False, (), []) and not callable(each.default)
        default = f"`{each.default}`" if said else ""
        yield f"| `{_cell(names)}` | {default} | {_cell(getattr(each, 'help', '') or '')} |"
    yield ""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


PAGES: dict[str, Callable[[], str]] = {"api": api, "job": job, "settings": settings, "cli": commands}
