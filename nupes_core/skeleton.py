"""Does a configuration describe a model of the size of its weights? Asked before memory or time is spent on it.

A `config.json` of a few hundred bytes can ask for a billion layers or for tables of terabytes. What it describes is
built without storage ("meta" tensors) and held against the headers of the weight files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

import torch

from nupes_core.artifact import quant_method
from nupes_core.errors import UnsupportedArchitectureError
from nupes_core.header import Header

MOST_LAYERS = 1024
"""Always allowed; more only with as many tensors. Layers cost time and memory even without storage."""

MOST_OF_A_KIND = 65_536
"""Heads, experts, labels and the like; more only where a tensor has such a dimension."""

FREE_PARAMETERS = 1 << 26
"""Room for masks and position tables that a model computes itself and no file holds: 256 MiB in float32."""

CODES_PER_BYTE = 4
"""The most that an artifact packs, at 2 bits."""

_LAYERS = re.compile(r"layer|block|depth|stage", re.IGNORECASE)
_COUNT = re.compile(r"^(num|n)_(?!positions|ctx|embd|inner)|^decoder_\w*heads$|^encoder_\w*heads$")
_HINT = 'Correct config.json, or send "evaluation": null: the weights alone can be quantized.'


def build_config(model_class: Any, config: Mapping[str, Any], headers: Mapping[str, Header]) -> Any:
    """Return transformers' configuration object, after checking what it would make a model allocate.

    Args:
        model_class: the class that builds the model.
        config: sanitized content of `config.json`.
        headers: of the model's weight files.

    Raises:
        UnsupportedArchitectureError: transformers cannot build a model from it, or one of another size than the files.
    """
    _check_counts(config, headers)
    try:
        built = model_class.config_class.from_dict(dict(config))
        with torch.device("meta"):
            skeleton = model_class(built)
        needed = sum(each.numel() for each in chain(skeleton.parameters(), skeleton.buffers()))
    except Exception as error:  # whatever transformers stumbles over, it is the configuration that made it
        raise UnsupportedArchitectureError(
            f"config.json describes no model that transformers can build ({_said(error)})", hint=_HINT
        ) from error
    present = _parameters(config, headers)
    if needed > 2 * present + FREE_PARAMETERS:
        raise UnsupportedArchitectureError(
            f"config.json describes a model of {needed} parameters; the files hold {present}", hint=_HINT
        )
    # A class may change the object it is given.
    return model_class.config_class.from_dict(dict(config))


def _parameters(config: Mapping[str, Any], headers: Mapping[str, Header]) -> int:
    """Return the elements in the files; for an artifact, the most that its bytes can stand for."""
    if quant_method(config) is not None:
        return CODES_PER_BYTE * sum(header.data_bytes for header in headers.values())
    return sum(info.params for header in headers.values() for info in header.tensors)


def _check_counts(config: Mapping[str, Any], headers: Mapping[str, Header]) -> None:
    tensors = [info for header in headers.values() for info in header.tensors]
    layers = max(MOST_LAYERS, len(tensors))
    of_a_kind = max(MOST_OF_A_KIND, *(max(info.shape, default=0) for info in tensors), 0)
    for key, value in _integers(config):
        most = layers if _LAYERS.search(key) else of_a_kind
        if (_LAYERS.search(key) or _COUNT.search(key)) and value > most:
            raise UnsupportedArchitectureError(
                f"config.json has {key} {value}; weights of {len(tensors)} tensors allow {most}", hint=_HINT
            )


def _integers(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Yield the whole numbers of a configuration and its parts under their keys, those of lists too."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _integers(value)
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, Mapping):
                yield from _integers(item)
            elif isinstance(item, int | float):
                yield key, int(min(item, 2.0**63)) if item == item else 0


def _said(error: Exception) -> str:
    """Name the error and quote its first line, unless that could hold a path."""
    line = next(iter(str(error).splitlines()), "")[:200]
    return f"{type(error).__name__}: {line}" if line and "/" not in line else type(error).__name__
