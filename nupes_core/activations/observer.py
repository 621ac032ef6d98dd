"""What is remembered of the inputs that a layer sees, in bounded memory, and the quantizer that fits them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from nupes_core.activations.fit import Evidence, fit_dynamic, fit_static
from nupes_core.activations.grid import token_range
from nupes_core.activations.quantizer import ActivationQuantizer, token_dims
from nupes_core.config import ActivationConfig
from nupes_core.errors import CalibrationError, NumericsError

SAMPLE = 1 << 15
"""Inputs that are kept of each layer."""

TAIL = 1 << 10
"""Largest and smallest inputs that are kept besides: a few outliers decide where a range ends."""


class ActivationObserver:
    """Keeps a random sample of the inputs of one layer, each with the range of its token, and the extremes of all."""

    def __init__(self, token_dims: int = 1) -> None:
        """Start empty; `token_dims` as for `ActivationQuantizer`."""
        self.token_dims = token_dims
        self.count = 0
        self._tokens = torch.empty(0, 3)
        self._lowest, self._highest = torch.empty(0), torch.empty(0)

    def update(self, x: torch.Tensor) -> None:
        """Take in the input of one call, any shape.

        Raises:
            NumericsError: it holds NaN or an infinity.
        """
        if not x.numel():
            return
        wide = x.detach().float()
        low, high = token_range(wide, self.token_dims)
        if not bool((high - low).isfinite().all()):
            raise NumericsError("an input holds NaN or an infinity", hint="Run the model itself on the samples first.")
        self._sample((wide, low.expand(wide.shape), high.expand(wide.shape)))
        self._lowest = _extremes(self._lowest, wide, largest=False)
        self._highest = _extremes(self._highest, wide, largest=True)

    def fit(self, config: ActivationConfig) -> ActivationQuantizer:
        """Return a quantizer with range, zero point and (power grid) exponent of least squared error.

        Raises:
            CalibrationError: nothing was observed.
        """
        if not self.count:
            raise CalibrationError("a layer saw no input", hint="Give samples that reach every quantized layer.")
        fit = fit_dynamic if config.scaling == "dynamic" else fit_static
        return fit(self._evidence(), config, self.token_dims)

    def _sample(self, parts: tuple[torch.Tensor, ...]) -> None:
        """Let this call have its share of a sample of everything seen; drawn with repetition, in its own order."""
        size = parts[0].numel()
        generator = torch.Generator().manual_seed(self.count)
        self.count += size
        wanted = max(min(SAMPLE, self.count) * size // self.count, 1)
        picked = torch.randint(size, (wanted,), generator=generator).to(parts[0].device)
        kept = torch.randperm(len(self._tokens), generator=generator)[: SAMPLE - wanted]
        taken = torch.stack([part.flatten()[picked] for part in parts], 1).cpu()
        self._tokens = torch.cat([self._tokens[kept], taken])

    def _evidence(self) -> Evidence:
        values = self._tokens[:, 0]
        body = values[(values > self._lowest.max()) & (values < self._highest.min())]
        tails = torch.cat([self._lowest, self._highest])
        weight = max(self.count - len(tails), 0) / max(len(body), 1)
        weights = torch.cat([torch.ones(len(tails)), torch.full((len(body),), weight)])
        return Evidence(self._tokens, torch.cat([tails, body]), weights)


def observe(
    layers: Mapping[str, nn.Module], run: Callable[[], object], mask: torch.Tensor | None = None
) -> dict[str, ActivationObserver]:
    """Call `run`, and return what the layers saw meanwhile.

    Args:
        layers: by name.
        run: runs the model on all samples, in order, each once.
        mask: positions that count, bool [samples, length]; None: all. Inputs without such positions count whole.
    """
    observers = {name: ActivationObserver(token_dims(layer)) for name, layer in layers.items()}
    seen = dict.fromkeys(layers, 0)

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def update(_: nn.Module, args: tuple[Any, ...]) -> None:
            x, first = args[0], seen[name]
            seen[name] += len(x)
            counted = None if mask is None else mask[first : first + len(x)]
            fits = counted is not None and x.dim() == 3 and x.shape[:2] == counted.shape
            observers[name].update(x[counted] if fits else x)

        return update

    with ExitStack() as stack, torch.no_grad():
        for name, layer in layers.items():
            stack.callback(layer.register_forward_pre_hook(hook(name)).remove)
        run()
    return observers


def _extremes(kept: torch.Tensor, x: torch.Tensor, *, largest: bool) -> torch.Tensor:
    found = torch.topk(x.flatten(), min(TAIL, x.numel()), largest=largest).values.cpu()
    merged = torch.cat([kept, found])
    return torch.topk(merged, min(TAIL, len(merged)), largest=largest).values
