"""Formats of quantized checkpoints, by the name that users ask for."""

from __future__ import annotations

from collections.abc import Sequence

from nupes_core.errors import InvalidConfigError
from nupes_core.formats.base import Format
from nupes_core.formats.compressedtensors import COMPRESSED_TENSORS
from nupes_core.formats.dense import DENSE
from nupes_core.formats.gguf import GGUF
from nupes_core.formats.native import NATIVE
from nupes_core.formats.onnx import ONNX

FORMATS: dict[str, Format] = {fmt.name: fmt for fmt in (NATIVE, DENSE, COMPRESSED_TENSORS, GGUF, ONNX)}

__all__ = ["FORMATS", "Format", "format_groups", "get_format"]


def get_format(name: str) -> Format:
    """Return a format.

    Raises:
        InvalidConfigError: no format of this name.
    """
    if name not in FORMATS:
        raise InvalidConfigError(f"unknown format {name!r}", hint=f"Known formats: {', '.join(FORMATS)}.")
    return FORMATS[name]


def format_groups(names: Sequence[str]) -> tuple[tuple[Format, ...], ...]:
    """Return formats by their recipe, each once; groups and their members in the order they are named.

    Raises:
        InvalidConfigError: no format of this name, or none named.
    """
    if not names:
        raise InvalidConfigError("no format is named", hint=f"Known formats: {', '.join(FORMATS)}.")
    groups: dict[int, list[Format]] = {}
    for fmt in map(get_format, dict.fromkeys(names)):
        groups.setdefault(id(fmt.recipe), []).append(fmt)
    return tuple(map(tuple, groups.values()))
