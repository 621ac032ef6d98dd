"""Running a model as it is meant to be used, and leaving it as it was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from nupes_core.data.samples import Samples

BATCH = 32
"""Samples that are run at once."""


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode without gradients; afterwards each module is in the mode it had."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def device_of(model: nn.Module) -> torch.device:
    """Return where the parameters of a model are; the CPU for one without any."""
    return next(model.parameters(), torch.empty(0)).device


def output_tensors(output: object) -> Iterator[torch.Tensor]:
    """Yield the tensors of what a model gave, a tensor itself or within mappings and sequences."""
    if isinstance(output, torch.Tensor):
        yield output
    elif isinstance(output, Mapping | list | tuple):
        for part in output.values() if isinstance(output, Mapping) else output:
            yield from output_tensors(part)


def run_samples(model: nn.Module, samples: Samples, batch: int = BATCH) -> list[object]:
    """Return what the model gives for each batch of samples, on the device of the model."""
    device = device_of(model)
    outputs: list[object] = []
    with inference(model):
        for part in samples.batches(batch):
            moved = {name: tensor.to(device) for name, tensor in part.inputs.items()}
            outputs.append(Samples(moved).call(model))
    return outputs
