"""Arguments that a block is called with, for all calibration samples at once, cut into batches on demand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree


@dataclass(frozen=True)
class Call:
    """Arguments of one call of a block, and how many samples it was for."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    samples: int


@dataclass(frozen=True)
class _PerSample:
    """A tensor [n, …] whose first dimension is that of the samples."""

    tensor: torch.Tensor


@dataclass(frozen=True)
class Feed:
    """Arguments for `samples` samples; tensors with a sample dimension are cut, all others shared."""

    tree: Any
    samples: int

    @classmethod
    def gather(cls, calls: Sequence[Call], joined: dict[tuple[int, ...], Any] | None = None) -> Feed:
        """Join the calls of consecutive samples.

        A tensor whose first dimension is the number of samples in each call is one per sample, unless it is the same
        for all of them (a causal mask, the sines of positions); that is kept once.

        Args:
            calls: of one block.
            joined: what was joined for other blocks, by identity of the parts, so that all blocks share one mask; the
                calls of those blocks still have to be alive.
        """
        joined = {} if joined is None else joined
        leaves = [pytree.tree_flatten((call.args, call.kwargs)) for call in calls]
        spec = leaves[0][1]
        columns = zip(*(flat for flat, _ in leaves), strict=True)
        counts = [call.samples for call in calls]
        found = []
        for column in columns:
            key = tuple(map(id, column))
            if key not in joined:
                joined[key] = _join(column, counts)
            found.append(joined[key])
        return cls(pytree.tree_unflatten(found, spec), sum(counts))

    def batch(self, index: slice | torch.Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return positional and keyword arguments for some samples."""
        args, kwargs = pytree.tree_map(
            lambda leaf: leaf.tensor[index] if isinstance(leaf, _PerSample) else leaf, self.tree
        )
        return args, kwargs

    def first(self, samples: int) -> Feed:
        """Return a feed of the first samples alone."""

        def cut(leaf: Any) -> Any:
            return _PerSample(leaf.tensor[:samples]) if isinstance(leaf, _PerSample) else leaf

        return Feed(pytree.tree_map(cut, self.tree), min(samples, self.samples))

    def with_input(self, x: torch.Tensor) -> Feed:
        """Return a feed whose first tensor argument, the hidden state [n, …], is `x`."""
        leaves, spec = pytree.tree_flatten(self.tree)
        position = first_tensor(leaves)
        leaves[position] = _PerSample(x)
        return Feed(pytree.tree_unflatten(leaves, spec), len(x))


def first_samples(leaf: Any, given: int, count: int) -> Any:
    """Return the part of an argument, of a call for `given` samples, that is for the first `count` of them.

    What has no dimension of samples is returned as it is.
    """
    one_each = isinstance(leaf, torch.Tensor) and leaf.dim() > 0 and len(leaf) == given
    return leaf[:count] if one_each and count < given else leaf


def first_tensor(leaves: Sequence[Any]) -> int:
    """Return the position of the first floating point tensor among flattened arguments.

    Raises:
        StopIteration: there is none.
    """
    return next(i for i, leaf in enumerate(leaves) if _is_hidden(leaf))


def _is_hidden(leaf: Any) -> bool:
    tensor = leaf.tensor if isinstance(leaf, _PerSample) else leaf
    return isinstance(tensor, torch.Tensor) and tensor.is_floating_point()


def _join(column: Sequence[Any], samples: Sequence[int]) -> Any:
    first = column[0]
    if not isinstance(first, torch.Tensor):
        return first
    if not all(t.dim() > 0 and len(t) == n for t, n in zip(column, samples, strict=True)) or max(samples) == 1:
        same = all(t.shape == first.shape and torch.equal(t, first) for t in column[1:])
        return first if same else _PerSample(torch.cat(list(column)))
    if all(torch.equal(row, first[0]) for t in column for row in t):
        return first[:1]
    return _PerSample(torch.cat(list(column)))
