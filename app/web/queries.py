"""What a plain HTML form puts into the address, put as the API reads it."""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import parse_qsl, urlencode

_WITHOUT_ZONE = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d)(:\d\d)?")
"""What a browser sends of `<input type="datetime-local">`; pages speak of UTC."""


def is_tidy(query: str) -> bool:
    """Whether the API reads it as it is."""
    return tidy(query) == urlencode(parse_qsl(query, keep_blank_values=True))


def tidy(query: str) -> str:
    """Drop the fields that were left empty, name labels as filters do (`label=k=v` becomes `label.k=v`), and give
    moments their zone.
    """  # noqa: D205
    given = parse_qsl(query, keep_blank_values=True)
    return urlencode([_REWRITTEN.get(name, _as_it_is)(name, value) for name, value in given if value])


def _as_it_is(name: str, value: str) -> tuple[str, str]:
    return name, value


def _label(_: str, text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return f"label.{name.strip()}", value.strip()


def _moment(name: str, text: str) -> tuple[str, str]:
    local = _WITHOUT_ZONE.fullmatch(text)
    return name, f"{local[1]}{local[2] or ':00'}Z" if local else text


_REWRITTEN: dict[str, Callable[[str, str], tuple[str, str]]] = {
    "label": _label,
    "created_after": _moment,
    "created_before": _moment,
}
"""By the name of a field."""


def without_cursor(query: str) -> str:
    """What narrows a list, ready for `cursor=` to follow: empty, or ending with `&`."""
    kept = urlencode([(name, value) for name, value in parse_qsl(query) if name != "cursor"])
    return f"{kept}&" if kept else ""
