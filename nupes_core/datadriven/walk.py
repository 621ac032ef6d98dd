"""Two streams from block to block: what the float model computes, and what the quantized prefix computes."""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils import _pytree as pytree

from nupes_core.activations import ActivationQuantizer
from nupes_core.data.samples import Samples
from nupes_core.datadriven.blocksource import BlockSource
from nupes_core.datadriven.chain import Chain
from nupes_core.datadriven.feed import Call, Feed, first_samples
from nupes_core.datadriven.quantizeunit import output_tensor, quantized_inputs
from nupes_core.datadriven.units import Unit

RUN_BATCH = 8
"""Samples that run through a block at once."""


@dataclass
class Step:
    """One block whose turn it is; its module holds the float weights, and after the turn has to hold the decoded ones.

    Attributes:
        unit: the block.
        feed: inputs from the already quantized prefix.
        target: output of the float block on float inputs [n, …].
        inputs: quantizers of layer inputs, set by whoever quantizes the block.
    """

    unit: Unit
    feed: Feed
    target: torch.Tensor
    inputs: Mapping[str, ActivationQuantizer] = field(default_factory=dict)


class Walk(Protocol):
    """Goes from block to block."""

    def steps(self) -> Iterator[Step]:
        """Yield the blocks in the order in which they run."""


class ChainWalk:
    """Blocks that pass one hidden state on: each runs once per stream, and only one is in memory."""

    def __init__(self, source: BlockSource, chain: Chain, layers: Mapping[str, Mapping[str, Any]]) -> None:
        """Prepare.

        Args:
            source: of the blocks' weights.
            chain: order and inputs of the blocks.
            layers: block -> paths of its layers to be quantized -> module; blocks without any only run.
        """
        self._source, self._chain, self._layers = source, chain, layers

    def steps(self) -> Iterator[Step]:
        """Yield the blocks that have layers to be quantized."""
        self._source.release_rest()
        hidden = self._chain.hidden
        reference = hidden
        last = max(i for i, name in enumerate(self._chain.names) if self._layers.get(name))
        for i, (name, feed) in enumerate(zip(self._chain.names, self._chain.feeds, strict=True)):
            self._source.materialize(name)
            unit = Unit(name, self._source.model.get_submodule(name), dict(self._layers.get(name, {})))
            reference = run_block(unit.module, feed.with_input(reference))
            step = Step(unit, feed.with_input(hidden), reference)
            if unit.layers:
                yield step
            if i == last:  # nothing needs the output of the quantized block any more
                self._source.release(name)
                return
            with quantized_inputs(unit.layers, step.inputs):
                hidden = run_block(unit.module, step.feed)
            self._source.release(name)
            gc.collect()  # torch's optimizers are reference cycles: their moments would stay into the next block


class GraphWalk:
    """Blocks of any module, in memory: inputs and targets are found by running the model up to the block."""

    def __init__(self, model: nn.Module, units: Sequence[Unit], samples: Samples) -> None:
        self._model, self._samples = model, samples
        self._reference = copy.deepcopy(model)
        self._units = {unit.name: unit for unit in units}

    def steps(self) -> Iterator[Step]:
        """Yield the units that are called exactly once, in the order in which they are called."""
        with ExitStack() as stack:
            for name in self._order():
                unit = self._units[name]
                feed = self._feed(name)
                step = Step(unit, feed, self._target(name))
                yield step
                stack.enter_context(quantized_inputs(unit.layers, step.inputs))

    @torch.no_grad()
    def _order(self) -> list[str]:
        called: list[str] = []
        with ExitStack() as stack:
            for name in self._units:
                module = self._reference.get_submodule(name)
                stack.callback(module.register_forward_pre_hook(lambda *_, name=name: called.append(name)).remove)
            self._samples[:1].call(self._reference)
        return [name for name in dict.fromkeys(called) if called.count(name) == 1]

    def _feed(self, name: str) -> Feed:
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

        def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls.append((args, kwargs))
            raise _Stop

        hook = self._model.get_submodule(name).register_forward_pre_hook(record, with_kwargs=True)
        counts = self._run(self._model, hook)
        return Feed.gather([_counted(call, given, count) for call, (given, count) in zip(calls, counts, strict=True)])

    def _target(self, name: str) -> torch.Tensor:
        outputs: list[torch.Tensor] = []

        def record(_: nn.Module, __: Any, output: Any) -> None:
            outputs.append(output_tensor(output))
            raise _Stop

        counts = self._run(self._reference, self._reference.get_submodule(name).register_forward_hook(record))
        return torch.cat([output[:count] for output, (_, count) in zip(outputs, counts, strict=True)])

    @torch.no_grad()
    def _run(self, model: nn.Module, hook: Any) -> list[tuple[int, int]]:
        """Run up to the hook, and return for each batch how many samples it holds, and how many of them count."""
        try:
            batches = self._samples.batches_alike(RUN_BATCH * 8)
            return [(self._run_batch(model, batch), count) for batch, count in batches]
        finally:
            hook.remove()

    def _run_batch(self, model: nn.Module, batch: Samples) -> int:
        try:
            batch.call(model)
        except _Stop:
            return len(batch)
        raise AssertionError("a unit that was called before is not called any more")


def _counted(call: tuple[tuple[Any, ...], dict[str, Any]], given: int, count: int) -> Call:
    args, kwargs = pytree.tree_map(lambda leaf: first_samples(leaf, given, count), call)
    return Call(args, kwargs, count)


class _Stop(Exception):  # noqa: N818 - no error
    """What was wanted is recorded; the rest of the model need not run."""


@torch.no_grad()
def run_block(module: nn.Module, feed: Feed) -> torch.Tensor:
    """Return the output of a block for all samples."""
    whole: torch.Tensor | None = None
    for start in range(0, feed.samples, RUN_BATCH):
        index = slice(start, min(start + RUN_BATCH, feed.samples))
        args, kwargs = feed.batch(index)
        part = output_tensor(module(*args, **kwargs))
        whole = part.new_empty(feed.samples, *part.shape[1:]) if whole is None else whole
        whole[index] = part
    assert whole is not None, "there are no samples"
    return whole
