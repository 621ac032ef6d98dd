"""Second moments of layer inputs: the Hessian H = XᵀX of the layer-wise squared error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from nupes_core.datadriven.layer import input_rows


class SecondMoments:
    """Accumulates XᵀX / n of the inputs of layers while hooked.

    Layers fed by the very same tensor (q, k and v of an attention) share one sum.

    Attributes:
        mask: positions that count in the batch that runs, bool [n, length]; None: all.
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        self._layers = dict(layers)
        self._sums: dict[str, torch.Tensor] = {}
        self._shared: dict[str, str] = {}
        self._rows: dict[str, int] = {}
        self._last: tuple[str, torch.Tensor | None] = ("", None)
        self.mask: torch.Tensor | None = None

    def collect(self, run: Callable[[], object]) -> dict[str, torch.Tensor]:
        """Call `run`, and return float32 [cols, cols] by layer; grouped convolutions have none."""
        with ExitStack() as stack:
            for name, layer in self._layers.items():
                stack.callback(layer.register_forward_pre_hook(self._hook(name)).remove)
            run()
        own = {name: total / self._rows[name] for name, total in self._sums.items()}
        return {name: own[self._shared.get(name, name)] for name in self._layers if self._shared.get(name, name) in own}

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            owner, seen = self._last
            if seen is args[0] and not isinstance(module, nn.Conv2d):
                self._shared[name] = owner
                return
            self._last = (name, args[0])
            x = args[0].detach()
            counted = self.mask is not None and x.dim() == 3 and x.shape[:2] == self.mask.shape
            rows = input_rows(module, x[self.mask] if counted else x)
            if rows is None or not len(rows):
                return
            rows = rows.float()
            found = rows.T @ rows
            self._sums[name] = found if name not in self._sums else self._sums[name].add_(found)
            self._rows[name] = self._rows.get(name, 0) + len(rows)

        return hook
