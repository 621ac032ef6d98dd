"""A chain of blocks that pass one hidden state on: what each is called with, found without running any of them.

Every block is replaced by a shim that notes its arguments and returns the hidden state it got, so that a model whose
block weights are not even loaded shows how it calls its blocks. Run twice, the second time with other hidden states,
it also shows whether anything but the hidden state depends on earlier blocks; then it is no chain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from nupes_core.data.samples import Samples
from nupes_core.datadriven.feed import Call, Feed, first_samples, first_tensor
from nupes_core.errors import NupesError, UnsupportedArchitectureError

TRACE_BATCH = 8
"""Samples of one pass through the shims."""

_HINT = "Use optimize data_free, which needs no model class."


@dataclass(frozen=True)
class Chain:
    """Blocks in the order in which they run.

    Attributes:
        names: module paths.
        feeds: what each block is called with besides the hidden state, for which an empty tensor stands.
        hidden: input of the first block [n, …].
    """

    names: list[str]
    feeds: list[Feed]
    hidden: torch.Tensor


class _Done(Exception):  # noqa: N818 - no error
    """All blocks were passed; what follows them need not run."""


def trace_chain(model: nn.Module, names: Sequence[str], samples: Samples) -> Chain:
    """Return the chain of the blocks `names`.

    Args:
        model: everything but its blocks has its weights.
        names: module paths of the blocks.
        samples: what the model is run on.

    Raises:
        UnsupportedArchitectureError: the blocks do not form a chain.
    """
    shims = _Shims(names)
    with shims.installed(model), torch.no_grad():
        shims.tuples = not shims.passes(model, samples[:1])
        batches, inputs = [], []
        for batch, count in samples.batches_alike(TRACE_BATCH):
            batches.append(shims.run(model, batch, count, 0.0))
            inputs.append(shims.first_input())
        order = shims.order
        again = shims.run(model, *next(samples.batches_alike(TRACE_BATCH)), 1.0)
    _check_independent(batches[0], again, order)
    joined: dict[tuple[int, ...], Any] = {}
    feeds = [Feed.gather([calls[name] for calls in batches], joined) for name in order]
    return Chain(order, feeds, torch.cat(inputs))


class _Shims:
    """Stand-ins of the blocks.

    Attributes:
        tuples: whether they return a tuple that begins with the hidden state, or the hidden state itself.
    """

    tuples = False

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._calls: dict[str, Call] = {}
        self._cut: dict[int, tuple[Any, Any]] = {}
        self._first: torch.Tensor | None = None
        self._passed: torch.Tensor | None = None
        self._given, self._count, self._shift = 0, 0, 0.0

    @property
    def order(self) -> list[str]:
        """Blocks in the order in which they were called last."""
        return list(self._calls)

    def first_input(self) -> torch.Tensor:
        """Return the hidden state that the first block was called with last."""
        assert self._first is not None, "the model was not run"
        return self._first

    def run(self, model: nn.Module, samples: Samples, count: int, shift: float) -> dict[str, Call]:
        """Return the calls of the blocks for the first `count` samples; each shim adds `shift` to the hidden state."""
        self._calls, self._cut, self._passed, self._shift = {}, {}, None, shift
        self._given, self._count = len(samples), count
        try:
            samples.call(model)
        except _Done:
            return dict(self._calls)
        except NupesError:
            raise
        except Exception as error:  # what a model's code makes of our stand-ins is its own affair
            raise UnsupportedArchitectureError(
                f"{type(model).__name__} does not pass a hidden state from block to block ({type(error).__name__})",
                hint=_HINT,
            ) from error
        missing = [name for name in self._names if name not in self._calls]
        raise UnsupportedArchitectureError(f"{type(model).__name__} does not run its block {missing[0]}", hint=_HINT)

    def passes(self, model: nn.Module, samples: Samples) -> bool:
        """Tell whether the model goes through all of its blocks."""
        try:
            self.run(model, samples, len(samples), 0.0)
        except UnsupportedArchitectureError:
            return False
        return True

    @contextmanager
    def installed(self, model: nn.Module) -> Iterator[None]:
        """Replace the forward of every block while the context lasts."""
        blocks = {name: model.get_submodule(name) for name in self._names}
        for name, block in blocks.items():
            block.forward = self._shim(name)
        try:
            yield
        finally:
            for block in blocks.values():
                del block.forward

    def _counted(self, leaf: Any) -> Any:
        """Return the part of an argument that is for the samples that count; the argument itself where it is whole."""
        if id(leaf) not in self._cut:
            self._cut[id(leaf)] = leaf, first_samples(leaf, self._given, self._count)
        return self._cut[id(leaf)][1]

    def _shim(self, name: str) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            leaves, spec = pytree.tree_flatten((args, kwargs))
            try:
                position = first_tensor(leaves)
            except StopIteration:
                raise UnsupportedArchitectureError(f"{name} is called without a hidden state", hint=_HINT) from None
            hidden = leaves[position]
            if name in self._calls or (self._passed is not None and hidden is not self._passed):
                raise UnsupportedArchitectureError(
                    f"{name} does not take the hidden state of the block before it", hint=_HINT
                )
            if not self._calls:
                self._first = hidden[: self._count].clone()
            leaves[position] = hidden.new_empty(0)  # a hidden state for each block would be as many as the blocks
            args, kwargs = pytree.tree_unflatten([self._counted(leaf) for leaf in leaves], spec)
            self._calls[name] = Call(args, kwargs, self._count)
            if len(self._calls) == len(self._names):
                raise _Done
            self._passed = hidden + self._shift if self._shift else hidden.view_as(hidden)
            return (self._passed,) if self.tuples else self._passed

        return forward


def _check_independent(calls: dict[str, Call], others: dict[str, Call], order: list[str]) -> None:
    """Refuse blocks whose further arguments depend on what earlier blocks return."""
    for name in order:
        pairs = zip(
            *(pytree.tree_leaves((each[name].args, each[name].kwargs)) for each in (calls, others)), strict=True
        )
        tensors = [(a, b) for a, b in pairs if isinstance(a, torch.Tensor)]
        position = next(i for i, (a, _) in enumerate(tensors) if a.is_floating_point())
        for a, b in tensors[:position] + tensors[position + 1 :]:
            if a.shape != b.shape or not torch.equal(a, b):
                raise UnsupportedArchitectureError(
                    f"{name} takes more than the hidden state from the blocks before it", hint=_HINT
                )
