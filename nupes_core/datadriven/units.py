"""Blocks of a model, found by its structure instead of a list of architectures.

A unit is what is trained at once: the outermost element of a `ModuleList` or `Sequential` that is no such container
itself (a decoder block, a residual block of a conv net), or a single layer that belongs to none.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from torch import nn

CONTAINERS = (nn.ModuleList, nn.Sequential)


@dataclass(frozen=True)
class Unit:
    """A block of a model.

    Attributes:
        name: module path in the model.
        module: the block.
        layers: path within the block -> layer to be quantized; "" where the unit is the layer itself.
    """

    name: str
    module: nn.Module
    layers: dict[str, Any]

    def full_name(self, layer: str) -> str:
        """Return the path of a layer in the model."""
        return f"{self.name}.{layer}" if layer else self.name


def find_units(model: nn.Module, layers: Collection[str]) -> list[Unit]:
    """Return the units that hold the layers named, in the order of the model's definition."""
    members: dict[str, list[str]] = {}
    for name in layers:
        members.setdefault(_unit_of(model, name), []).append(name)
    return [_unit(model, name, held) for name, held in members.items()]


def repeated_blocks(model: nn.Module) -> list[list[str]]:
    """Return the names of the elements of each outermost list of blocks that are no single layers."""
    found: dict[str, list[str]] = {}
    for name, module in model.named_modules():
        parent, _, _ = name.rpartition(".")
        leaf = not any(True for _ in module.children())
        if name and not leaf and name == _unit_of(model, name) and isinstance(model.get_submodule(parent), CONTAINERS):
            found.setdefault(parent, []).append(name)
    return list(found.values())


def _unit(model: nn.Module, name: str, layers: list[str]) -> Unit:
    within = {layer.removeprefix(name).removeprefix("."): model.get_submodule(layer) for layer in layers}
    return Unit(name, model.get_submodule(name), within)


def _unit_of(model: nn.Module, name: str) -> str:
    """Return the outermost ancestor (or `name` itself) that is an element of a container and none itself."""
    parts = name.split(".")
    module = model
    for depth, part in enumerate(parts, 1):
        element = isinstance(module, CONTAINERS)
        module = module.get_submodule(part)
        if element and not isinstance(module, CONTAINERS):
            return ".".join(parts[:depth])
    return name
