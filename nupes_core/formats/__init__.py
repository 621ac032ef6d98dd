"""Formats of quantized checkpoints, by the name that users ask for."""

from __future__ import annotations

from nupes_core.errors import InvalidConfigError
from nupes_core.formats.base import Format
from nupes_core.formats.dense import DENSE
from nupes_core.formats.native import NATIVE

FORMATS: dict[str, Format] = {fmt.name: fmt for fmt in (NATIVE, DENSE)}

__all__ = ["FORMATS", "Format", "get_format"]


def get_format(name: str) -> Format:
    """Return a format.

    Raises:
        InvalidConfigError: no format of this name.
    """
    if name not in FORMATS:
        raise InvalidConfigError(f"unknown format {name!r}", hint=f"Known formats: {', '.join(FORMATS)}.")
    return FORMATS[name]
