"""Sizes, spans and moments as people read them."""

from __future__ import annotations

import re
from datetime import datetime

from markupsafe import Markup, escape

from nupes_client.wording import NOTHING

_SIZES = ("B", "kB", "MB", "GB", "TB", "PB")
_SPANS = ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s"))
"""Seconds and sign of a unit and of the one that follows it."""


def size(count: float | None) -> str:
    """Bytes with three significant digits and a decimal unit."""
    if count is None:
        return NOTHING
    value = float(count)
    for unit in _SIZES[:-1]:
        if abs(value) < 999.5:
            return f"{value:.0f} B" if unit == "B" else f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} {_SIZES[-1]}"


def span(seconds: float | None) -> str:
    """A duration in its two largest units."""
    if seconds is None:
        return NOTHING
    if seconds < 10:
        return f"{max(seconds, 0):.1f} s"
    whole = round(seconds)
    for length, unit, below, small in _SPANS:
        if whole >= length:
            rest = whole % length // below
            return f"{whole // length} {unit} {rest} {small}" if rest else f"{whole // length} {unit}"
    return f"{whole} s"


def ago(moment_: datetime | None, current: datetime) -> str:
    """How long ago, in its largest unit."""
    if moment_ is None:
        return NOTHING
    seconds = (current - moment_).total_seconds()
    if seconds < 0:
        return f"in {span(-seconds)}"
    return "just now" if seconds < 5 else f"{span(seconds)} ago"


def moment(value: datetime | None) -> str:
    """A point in time to the second, UTC."""
    return NOTHING if value is None else f"{value:%Y-%m-%d %H:%M:%S} UTC"


def isoformat(value: datetime) -> str:
    """For the `datetime` attribute of `<time>`."""
    return f"{value:%Y-%m-%dT%H:%M:%SZ}"


def prose(text: str) -> Markup:
    """A sentence of a docstring: what stands in backticks becomes code."""
    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", str(escape(text))))  # noqa: S704  # nosec B704
