"""What a plain HTML form puts into the address, put as the API reads it."""

from __future__ import annotations

from urllib.parse import parse_qsl, urlencode


def tidy(query: str) -> str:
    """Drop the fields that were left empty, and name labels as filters do: `label=k=v` becomes `label.k=v`."""
    given = parse_qsl(query, keep_blank_values=True)
    return urlencode([_label(value) if name == "label" else (name, value) for name, value in given if value])


def _label(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return f"label.{name.strip()}", value.strip()


def without_cursor(query: str) -> str:
    """What narrows a list, ready for `cursor=` to follow: empty, or ending with `&`."""
    kept = urlencode([(name, value) for name, value in parse_qsl(query) if name != "cursor"])
    return f"{kept}&" if kept else ""
