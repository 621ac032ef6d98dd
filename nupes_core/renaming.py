"""Names that tensors have in a checkpoint and in the model that transformers makes of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming


def spellings(model: Any, name: str) -> tuple[str, ...]:
    """Return the names a tensor may have on the other side: the base model's prefix is added or stripped by loading."""
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    return (name, name.removeprefix(prefix), prefix + name)


def renamed(transforms: Iterable[Any], name: str) -> str | None:
    """Return the name of a checkpoint tensor after loading; None where its content is converted."""
    for each in transforms:
        name, matched = each.rename_source_key(name)
        if matched is not None and not isinstance(each, WeightRenaming):
            return None
    return name


def model_names(model: Any, names: Iterable[str]) -> dict[str, str]:
    """Return name in the model -> name in the checkpoint, for parameters and buffers that are loaded as they are."""
    own = {name: tuple(tensor.shape) for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    transforms = get_model_conversion_mapping(model)
    found: dict[str, str] = {}
    for name in names:
        target = renamed(transforms, name)
        for spelling in () if target is None else spellings(model, target):
            if spelling in own:
                found.setdefault(spelling, name)
    return found
