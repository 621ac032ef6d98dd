"""Formats of quantized checkpoints, by the name that users ask for."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from nupes_core.config import QuantizationConfig
from nupes_core.errors import InvalidConfigError
from nupes_core.formats.base import Format
from nupes_core.formats.compressedtensors import COMPRESSED_TENSORS
from nupes_core.formats.dense import DENSE
from nupes_core.formats.gguf import GGUF
from nupes_core.formats.native import NATIVE
from nupes_core.formats.onnx import ONNX

FORMATS: dict[str, Format] = {fmt.name: fmt for fmt in (NATIVE, DENSE, COMPRESSED_TENSORS, GGUF, ONNX)}

__all__ = ["FORMATS", "Format", "alike_groups", "format_groups", "get_format"]


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
    return _grouped(names, lambda fmt: id(fmt.recipe))


def alike_groups(names: Sequence[str], config: QuantizationConfig) -> tuple[tuple[Format, ...], ...]:
    """Return formats by what their models compute: of equal codes, and all or none with coded inputs of layers.

    Raises:
        InvalidConfigError: as `format_groups`.
    """
    coded = config.activations is not None
    return _grouped(names, lambda fmt: (id(fmt.recipe), coded and fmt.holds_input_codes))


def _grouped(names: Sequence[str], key: Callable[[Format], Hashable]) -> tuple[tuple[Format, ...], ...]:
    if not names:
        raise InvalidConfigError("no format is named", hint=f"Known formats: {', '.join(FORMATS)}.")
    groups: dict[Hashable, list[Format]] = {}
    for fmt in map(get_format, dict.fromkeys(names)):
        groups.setdefault(key(fmt), []).append(fmt)
    return tuple(map(tuple, groups.values()))
