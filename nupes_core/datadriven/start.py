"""Where training begins: search without data, search by importance, error feedback, coordinate descent (method §3)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial

import torch

from nupes_core.config import WeightConfig
from nupes_core.datadriven.descent import descend
from nupes_core.datadriven.feedback import Compensated, feed_back, inverse_factor
from nupes_core.datadriven.latent import Coded, LatentWeight
from nupes_core.datadriven.units import Unit
from nupes_core.errors import naming
from nupes_core.quantizer.weight import quantize_weight

Latents = dict[str, LatentWeight]
"""By layer path within the block."""


@dataclass(frozen=True)
class Starts:
    """The ways to quantize the layers of a block before anything is learnt.

    Attributes:
        unit: the block.
        matrices: float32 [rows, cols] by layer path within the block.
        weights: settings by layer path.
        shared_exponent: for exponent scope `global`.
    """

    unit: Unit
    matrices: Mapping[str, torch.Tensor]
    weights: Mapping[str, WeightConfig]
    shared_exponent: float | None = None

    def without_data(self) -> dict[str, Callable[[Latents], Latents]]:
        """Return the one step that needs no data."""
        return {"data_free": lambda _: self._searched({})}

    def by_moments(
        self, moments: Mapping[str, torch.Tensor], error_feedback: bool
    ) -> dict[str, Callable[[Latents], Latents]]:
        """Return all steps by name; each goes on from what the one before it found.

        Args:
            moments: float32 [cols, cols] of the inputs, by layer path; none for grouped convolutions.
            error_feedback: go on with error feedback and descent.
        """
        of_inputs = {id(H): inverse_factor(H) for H in moments.values()}  # q, k and v share theirs
        factors = {name: of_inputs[id(H)] for name, H in moments.items()}
        importance = {name: U.diagonal().square().reciprocal() for name, U in factors.items()}
        found = self.without_data() | {"importance": lambda _: self._searched(importance)}
        if not error_feedback:
            return found
        return found | {
            "error_feedback": partial(self._solved, lambda w, coded, name: feed_back(w, coded, factors[name]), factors),
            "descent": partial(self._solved, lambda w, coded, name: descend(w, coded, moments[name]), moments),
        }

    def _solved(
        self, solve: Callable[[torch.Tensor, Coded, str], Compensated], known: Collection[str], latents: Latents
    ) -> Latents:
        """Solve layer by layer; those without second moments stay as they are."""
        solved = dict(latents)
        for name in known:
            found = solve(self.matrices[name], latents[name].coded, name)
            solved[name] = LatentWeight(found.coded, found.target)
        return solved

    def _searched(self, importance: Mapping[str, torch.Tensor]) -> Latents:
        found: Latents = {}
        for name, w in self.matrices.items():
            with naming(self.unit.full_name(name)):
                weight = quantize_weight(
                    w, self.weights[name], importance=importance.get(name), shared_exponent=self.shared_exponent
                )
            found[name] = LatentWeight(Coded.unpack(weight), w)
        return found
