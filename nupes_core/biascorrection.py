"""Biases that give the outputs of quantized layers the mean they had (bias correction, Nagel et al., arXiv 1906.04721).

Inputs after ReLU are never negative, so that errors of weights add up to a shift of each output channel. One pass over
calibration data removes it, layer by layer: each is corrected on what the corrected ones before it give.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cosine_similarity

from nupes_core.data.samples import Samples
from nupes_core.inference import output_tensors, run_samples


@dataclass(frozen=True)
class Reference:
    """What the float model does on the samples.

    Attributes:
        samples: run as one batch.
        means: layer -> float32 [channels], mean of its output.
        outputs: of the model.
    """

    samples: Samples
    means: Mapping[str, torch.Tensor]
    outputs: list[torch.Tensor]


def observe_means(model: nn.Module, layers: Mapping[str, nn.Module], samples: Samples) -> Reference:
    """Run the float model; layers without a bias, and those called more than once, are left out."""
    calls: dict[str, list[torch.Tensor]] = {name: [] for name, layer in layers.items() if layer.bias is not None}
    chosen = {name: layers[name] for name in calls}
    outputs = _run(model, chosen, samples, lambda name, module, output: calls[name].append(_mean(module, output)))
    return Reference(samples, {name: found[0] for name, found in calls.items() if len(found) == 1}, outputs)


def correct_biases(model: nn.Module, reference: Reference) -> bool:
    """Shift the biases of the quantized layers so that their outputs have the reference's means, in place.

    Returns:
        Whether it was kept: the outputs of the model turned to the reference's. Else all is as it was.
    """
    layers = {name: model.get_submodule(name) for name in reference.means}
    before = {name: layer.bias.detach().clone() for name, layer in layers.items()}  # type: ignore[operator]
    error = _error(_run(model, {}, reference.samples), reference)

    def correct(name: str, module: Any, output: torch.Tensor) -> torch.Tensor:
        shift = (reference.means[name] - _mean(module, output)).to(output.dtype)
        module.bias.add_(shift)
        return output + _spread(module, shift)

    _run(model, layers, reference.samples, correct)
    kept = _error(_run(model, {}, reference.samples), reference) < error
    if not kept:
        for name, layer in layers.items():
            layer.bias.data.copy_(before[name])  # type: ignore[operator]
    return kept


def _run(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    samples: Samples,
    hook: Callable[[str, Any, torch.Tensor], torch.Tensor | None] = lambda *_: None,
) -> list[torch.Tensor]:
    """Run all samples at once with a hook on each layer's output."""
    with ExitStack() as stack:
        for name, layer in layers.items():
            called = layer.register_forward_hook(lambda module, _, output, name=name: hook(name, module, output))
            stack.callback(called.remove)
        found = output_tensors(run_samples(model, samples, batch=len(samples)))
        return [tensor for tensor in found if tensor.is_floating_point()]


def _channels(module: Any) -> int:
    """Return the trailing dimensions that lie behind the channels."""
    return 2 if hasattr(module, "kernel_size") or hasattr(module, "geometry") else 0


def _mean(module: Any, output: torch.Tensor) -> torch.Tensor:
    channels = output.float().movedim(-1 - _channels(module), 0)
    return channels.flatten(1).mean(1)


def _spread(module: Any, shift: torch.Tensor) -> torch.Tensor:
    return shift.view(-1, *[1] * _channels(module))


def _error(outputs: list[torch.Tensor], reference: Reference) -> float:
    """Return how far outputs point elsewhere than the reference's, each sample by itself.

    Not the squared error: on ResNet-20 corrected means make logits larger and agree better with the float model. The
    choice was made on that one net.
    """
    pairs = zip(outputs, reference.outputs, strict=True)
    return sum(float((1 - cosine_similarity(found.flatten(1), wanted.flatten(1))).sum()) for found, wanted in pairs)
