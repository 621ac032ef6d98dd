"""Folds batch norms into the layers before them: exact in eval mode, and what is quantized is what then computes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from nupes_core.data.samples import Samples
from nupes_core.inference import output_tensors, run_samples

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_FOLDED = (*_CONVOLUTIONS, nn.Linear)

_TOLERANCE = 1e-4
"""Largest change of an output, over the largest output, that counts as rounding in float32; wider types get more."""


@dataclass(frozen=True)
class _Pair:
    """A layer, and the batch norm that alone reads its output; names within the model."""

    layer: str
    norm: str


def fold_batch_norms(model: nn.Module, example: Samples | None = None) -> int:
    """Fold each batch norm that alone reads the output of a convolution or linear layer, in place.

    Pairs are found in the graph of the model where it can be traced symbolically (`torch.fx`), else by the tensors that
    pass between modules while it runs on the example. With an example outputs are compared, and what changes them is
    left as it was.

    Args:
        model: any module; the running statistics are used whatever its mode.
        example: a few inputs of the model. Without it, a model that cannot be traced keeps its batch norms, and so do
            linear layers, whose features a batch norm may not be looking at.

    Returns:
        How many were folded; each is an `nn.Identity` now.
    """
    if not any(type(module) in _NORMS for module in model.modules()):
        return 0
    run = None if example is None else _runner(model, example)
    pairs = [pair for pair in _find(model, run) if _foldable(model, pair, checked=run is not None)]
    if run is None:
        return len([_fold(model, pair) for pair in pairs])
    reference = run()
    undo = [_fold(model, pair) for pair in pairs]
    if _same(reference, run()):
        return len(pairs)
    for restore in reversed(undo):
        restore()
    return sum(_fold_checked(model, pair, run, reference) for pair in pairs)


def _find(model: nn.Module, run: Callable[[], list[torch.Tensor]] | None) -> list[_Pair]:
    try:
        graph = fx.symbolic_trace(model).graph
    except Exception:  # noqa: BLE001 - whatever in a stranger's forward cannot be traced
        return [] if run is None else _by_tensors(model, run)
    return _by_graph(graph)


def _by_graph(graph: fx.Graph) -> list[_Pair]:
    calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    return [
        _Pair(str(node.target), str(reader.target))
        for node in graph.nodes
        if node.op == "call_module" and calls[str(node.target)] == 1 and len(node.users) == 1
        for reader in node.users
        if reader.op == "call_module" and calls[str(reader.target)] == 1
    ]


def _by_tensors(model: nn.Module, run: Callable[[], list[torch.Tensor]]) -> list[_Pair]:
    """Find norms whose input is the very tensor that a layer gave; whether others read it too, the check will tell."""
    outputs: dict[int, tuple[str, torch.Tensor]] = {}
    calls: Counter[str] = Counter()
    found: list[_Pair] = []

    def after(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            calls[name] += 1
            if type(module) in _FOLDED:
                outputs[id(output)] = (name, output)
            elif args and id(args[0]) in outputs:
                found.append(_Pair(outputs[id(args[0])][0], name))

        return hook

    with ExitStack() as stack:
        for name, module in model.named_modules():
            if type(module) in (*_FOLDED, *_NORMS):
                stack.callback(module.register_forward_hook(after(name)).remove)
        run()
    return [pair for pair in found if calls[pair.layer] == calls[pair.norm] == 1]


def _foldable(model: nn.Module, pair: _Pair, *, checked: bool) -> bool:
    layer: Any = model.get_submodule(pair.layer)
    norm: Any = model.get_submodule(pair.norm)
    if type(norm) not in _NORMS or getattr(norm, "running_mean", None) is None:
        return False
    if type(layer) not in (_FOLDED if checked else _CONVOLUTIONS):
        return False
    names = [name for name, each in model.named_parameters(remove_duplicate=False) if each is layer.weight]
    return len(names) == 1 and len(layer.weight) == norm.num_features


@torch.no_grad()
def _fold(model: nn.Module, pair: _Pair) -> Callable[[], None]:
    """Fold one pair; return what takes it back."""
    layer: Any = model.get_submodule(pair.layer)
    norm: Any = model.get_submodule(pair.norm)
    weight, bias = layer.weight, layer.bias
    # in float64, so that the result is rounded once
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    gain = torch.rsqrt(variance + norm.eps) * (1 if norm.weight is None else norm.weight.double())
    shift = (0 if bias is None else bias.double()) - mean
    offset = shift * gain + (0 if norm.bias is None else norm.bias.double())
    folded = weight.double() * gain.view(-1, *[1] * (weight.dim() - 1))
    layer.weight = nn.Parameter(folded.to(weight.dtype), requires_grad=weight.requires_grad)
    layer.bias = nn.Parameter(offset.to(weight.dtype), requires_grad=weight.requires_grad)
    model.set_submodule(pair.norm, nn.Identity())

    def restore() -> None:
        layer.weight, layer.bias = weight, bias
        model.set_submodule(pair.norm, norm)

    return restore


def _fold_checked(model: nn.Module, pair: _Pair, run: Callable[[], list[torch.Tensor]], before: Any) -> bool:
    restore = _fold(model, pair)
    same = _same(before, run())
    if not same:
        restore()
    return same


def _runner(model: nn.Module, example: Samples) -> Callable[[], list[torch.Tensor]]:
    return lambda: list(output_tensors(run_samples(model, example)))


def _same(before: list[torch.Tensor], after: list[torch.Tensor]) -> bool:
    return all(
        float((a - b).abs().max()) <= (_TOLERANCE + 8 * torch.finfo(a.dtype).eps) * float(a.abs().max())
        for a, b in zip(before, after, strict=True)
        if a.is_floating_point() and a.numel()
    )
