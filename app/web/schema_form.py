"""The form of a new job, read from the schema of its request: a field the API learns is a field the form has.

A field is named by the JSON pointer of its value, which `static/js/jsonform.js` turns into the body again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nupes_client.schemas.specs import JobCreate, ModelRef

_ELSEWHERE = frozenset({"/model", "/method", "/target"})
"""Chosen in another way, or with nothing to choose."""
_SECRETS = frozenset({"/push_to_hub/secret"})
"""Names of stored secrets: chosen by who may list them, written by others."""
_KINDS = {"integer": "integer", "number": "number", "boolean": "boolean", "string": "text", "object": "pairs"}
_NAMES = {
    "timeout_s": "Timeout, s",
    "queue_timeout_s": "Queue timeout, s",
    "max_kl": "Max. KL",
    "max_perplexity_increase_pct": "Max. perplexity increase, %",
    "min_top1_agreement": "Min. top-1 agreement",
    "min_coverage_pct": "Min. coverage, %",
    "max_bytes": "Max. bytes",
}
"""Where the name of the field alone would read badly."""

Schema = Mapping[str, Any]


@dataclass(frozen=True)
class Field:
    """One value.

    Attributes:
        pointer: JSON pointer into the body.
        title: for people.
        kind: `integer number boolean choice choices lines pairs json text upload secret`, as `jsonform.js` reads it.
        default: what the service takes where nothing is sent, as the form shows it.
        value: what the form starts with.
        choices: of `choice`, `choices` and `secret`.
        minimum, maximum: of numbers, both allowed.
        help: what the schema says about it.
    """

    pointer: str
    title: str
    kind: str
    default: str
    value: str
    choices: tuple[str, ...]
    minimum: float | None
    maximum: float | None
    help: str

    @property
    def id(self) -> str:
        """For `id=` and `for=`."""
        return self.pointer.strip("/").replace("/", "-")


@dataclass(frozen=True)
class Group:
    """Values that belong together; `switch` is None where they are always there, else whether they are by default."""

    pointer: str
    title: str
    help: str
    switch: bool | None
    on: bool
    parts: tuple[Field | Group, ...]

    @property
    def id(self) -> str:
        """For `id=`."""
        return self.pointer.strip("/").replace("/", "-") or "job"


def job_form(given: Mapping[str, Any] | None = None, secrets: Sequence[str] | None = None) -> Group:
    """The form, filled with the body `given` (complete, as a job's own), or with what the service takes by itself.

    `secrets` are the names to choose from; None: nobody may know which there are.
    """
    schema = JobCreate.model_json_schema()
    default = JobCreate(model=ModelRef(id="")).model_dump(mode="json")
    return _Reader(schema["$defs"], secrets).group(
        "", "job", schema, default, {**default, **(given or {})}, nullable=False
    )


class _Reader:
    """Walks a schema; `default` and `value` are what the service takes by itself and what the form shows, there."""

    def __init__(self, definitions: Mapping[str, Any], secrets: Sequence[str] | None) -> None:
        self._definitions = definitions
        self._secrets = secrets

    def group(self, pointer: str, name: str, schema: Schema, default: Any, value: Any, *, nullable: bool) -> Group:
        defaults, values = default or {}, value or {}
        return Group(
            pointer=pointer,
            title=_title(name),
            help=_first_line(schema.get("description", "")),
            switch=default is not None if nullable else None,
            on=value is not None,
            parts=tuple(self._part(pointer, *part, defaults, values) for part in _properties(pointer, schema)),
        )

    def _part(self, pointer: str, name: str, part: Schema, defaults: Schema, values: Schema) -> Field | Group:
        place = f"{pointer}/{name}"
        default = defaults.get(name, part.get("default"))
        value = values.get(name, default)
        inner, nullable = self._resolved(part)
        if set(inner.get("properties", ())) == {"upload_id"}:
            return _field(place, name, {**inner, **part}, "upload", None, (value or {}).get("upload_id"), "/upload_id")
        if place in _SECRETS and self._secrets is not None:
            return _field(place, name, {**part, **inner, "enum": self._secrets}, "secret", default, value)
        if "properties" in inner:
            return self.group(place, name, {**inner, **part}, default, value, nullable=nullable)
        return _field(place, name, {**part, **inner}, self._kind(inner), default, value)

    def _resolved(self, part: Schema) -> tuple[Schema, bool]:
        """The schema behind a reference or an `X | null`, and whether null is allowed."""
        options = part.get("anyOf", [part])
        inner = next(option for option in options if option.get("type") != "null")
        if "$ref" in inner:
            inner = self._definitions[inner["$ref"].rsplit("/", 1)[1]]
        return inner, len(options) > 1

    def _kind(self, schema: Schema) -> str:
        if "enum" in schema:
            return "choice"
        return self._list_kind(schema) if schema["type"] == "array" else _KINDS[schema["type"]]

    def _list_kind(self, schema: Schema) -> str:
        items, _ = self._resolved(schema["items"])
        if "enum" in items:
            return "choices"
        return "lines" if items["type"] == "string" else "json"


def _properties(pointer: str, schema: Schema) -> list[tuple[str, Schema]]:
    return [(name, part) for name, part in schema["properties"].items() if f"{pointer}/{name}" not in _ELSEWHERE]


def _field(place: str, name: str, schema: Schema, kind: str, default: Any, value: Any, suffix: str = "") -> Field:
    words = schema.get("enum") or schema.get("items", {}).get("enum", ())
    return Field(
        pointer=place + suffix,
        title=_title(name),
        kind=kind,
        default=_TEXTS.get(kind, _text)(default),
        value=_TEXTS.get(kind, _text)(value),
        choices=tuple(words),
        minimum=schema.get("minimum"),
        maximum=schema.get("maximum"),
        help=_first_line(schema.get("description", "")),
    )


def _text(value: Any) -> str:
    return "" if value is None else str(value)


_TEXTS: dict[str, Callable[[Any], str]] = {
    "boolean": lambda value: json.dumps(bool(value)),
    "choices": lambda value: json.dumps(value or [], separators=(",", ":")),
    "json": lambda value: json.dumps(value) if value else "",
    "lines": lambda value: "\n".join(value or ()),
    "pairs": lambda value: "\n".join(f"{name}={text}" for name, text in (value or {}).items()),
}
"""How a value stands in its field; `jsonform.js` reads it back."""


def _title(name: str) -> str:
    return _NAMES.get(name) or name.replace("_", " ").capitalize()


def _first_line(text: str) -> str:
    return text.partition("\n")[0]
