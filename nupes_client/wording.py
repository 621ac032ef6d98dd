"""Settings and their values in plain words, for whoever shows a job to people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

NOTHING = "–"
"""Stands where there is no value."""


def setting(pointer: str) -> str:
    """The path of a setting in words: `/weights/group_size` is "weights: group size"."""
    return ": ".join(part.replace("_", " ") for part in pointer.strip("/").split("/"))


def plain(value: Any) -> str:
    """A value of JSON without its marks; an object without the fields that are null."""
    if value is None or value in ([], {}):
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        given = {name: inner for name, inner in value.items() if inner is not None}
        return ", ".join(f"{name.replace('_', ' ')}: {plain(inner)}" for name, inner in given.items()) or NOTHING
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(plain(inner) for inner in value)
    return str(value)
