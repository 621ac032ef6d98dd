"""Data-driven NUPES on one block: start, error feedback, learning, norm tweaking (method §3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from nupes_core.config import TrainingConfig, WeightConfig
from nupes_core.datadriven.feed import Feed
from nupes_core.datadriven.latent import LatentWeight
from nupes_core.datadriven.layer import matrix_of, weight_of
from nupes_core.datadriven.learn import Curve, Group, Objective, Schedule, train
from nupes_core.datadriven.start import Latents, Starts
from nupes_core.datadriven.statistics import SecondMoments
from nupes_core.datadriven.units import Unit
from nupes_core.errors import NumericsError
from nupes_core.inference import output_tensors
from nupes_core.quantizer.weight import QuantizedWeight

SCALE_RATE = 10.0
"""Learning rate of log2 scale indices, in units of that of the codes."""

EXPONENT_RATE = 12.0
"""Learning rate of stored exponents (steps of 1/200), in units of that of the codes."""

EXPONENT_UNTIL = 0.8
"""Exponents stay as they are in the last fifth, so that codes settle on fixed tables."""

NORM_RATE = 1e-3
"""Learning rate of norm tweaking, relative to the size of the parameter."""

HELD_OUT_EACH = 16
"""One sample in so many chooses the best state and is not trained on; spread, because data often comes sorted."""

MIN_LOSS_NORM = 1e-30


@dataclass(frozen=True)
class UnitTask:
    """One block and what it is run on.

    Attributes:
        unit: the block, its float weights in place.
        weights: settings by layer path within the block.
        feed: inputs from the already quantized prefix, for all samples.
        target: output of the float block on float inputs [n, …].
        mask: positions that count, bool [n, length]; None: all.
        inputs: quantizers of layer inputs by layer path; empty where activations stay float.
        shared_exponent: for exponent scope `global`.
        data_free: leave the weights as the search without data finds them; activations alone use the data.
    """

    unit: Unit
    weights: Mapping[str, WeightConfig]
    feed: Feed
    target: torch.Tensor
    mask: torch.Tensor | None = None
    inputs: Mapping[str, nn.Module] = field(default_factory=dict)
    shared_exponent: float | None = None
    data_free: bool = False


@dataclass(frozen=True)
class UnitResult:
    """A quantized block.

    Attributes:
        weights: stored form by layer path within the block.
        moved: share of codes that training changed, by layer path.
        norms: trained norm parameters by name within the block; empty without norm tweaking.
        stages: held-out loss, relative to the variance of the target, after each stage.
        curve, norm_curve: of the trainings.
    """

    weights: dict[str, QuantizedWeight]
    moved: dict[str, float]
    norms: dict[str, torch.Tensor]
    stages: dict[str, float]
    curve: Curve
    norm_curve: Curve | None


def quantize_unit(
    task: UnitTask, config: TrainingConfig, generator: torch.Generator, on_step: Callable[[], None] = lambda: None
) -> UnitResult:
    """Quantize the layers of a block; its module holds the decoded weights (and trained norms) afterwards.

    Raises:
        NumericsError: a weight or an activation is NaN or infinite.
    """
    return _UnitWork(task, config, generator, on_step).run()


class _UnitWork:
    """The work on one block."""

    def __init__(
        self, task: UnitTask, config: TrainingConfig, generator: torch.Generator, on_step: Callable[[], None]
    ) -> None:
        self.task, self.config = task, config
        self.layers = task.unit.layers
        order = torch.arange(len(task.target))
        held_out = order % HELD_OUT_EACH == HELD_OUT_EACH - 1
        self.trained = order[~held_out]
        self.held_out = order[held_out] if bool(held_out.any()) else order
        self.schedule = Schedule(config.steps, min(config.batch_size, len(self.trained)), generator, on_step)
        self.norm = self._target_variance()

    def run(self) -> UnitResult:
        for parameter in self.task.unit.module.parameters():
            parameter.requires_grad_(False)
        with quantized_inputs(self.layers, self.task.inputs):
            stages: dict[str, float] = {}
            latents = self._start(stages)
            started = {name: latent.snapped().codes for name, latent in latents.items()}
            curve = Curve(held_out={0: min(stages.values())}) if self.task.data_free else self._learn(latents)
            stages["learning"] = curve.best
            coded = {name: latent.snapped() for name, latent in latents.items()}
            self._set({name: each.pack().dequantize() for name, each in coded.items()})
            norms, norm_curve = self._tweak_norms(stages)
        moved = {name: float((coded[name].codes != started[name]).float().mean()) for name in coded}
        weights = {name: each.pack() for name, each in coded.items()}
        return UnitResult(weights, moved, norms, stages, curve, norm_curve)

    def _start(self, stages: dict[str, float]) -> Latents:
        """Return the best start by held-out loss; each of them begins where the one before it ended."""
        best: Latents = {}
        latents: Latents = {}
        for name, solve in self._starts().items():
            latents = solve(latents)
            stages[name] = self._held_out_loss(latents)
            if stages[name] == min(stages.values()):
                best = latents
        return best

    def _starts(self) -> dict[str, Callable[[Latents], Latents]]:
        matrices = {name: matrix_of(layer).float().contiguous() for name, layer in self.layers.items()}
        starts = Starts(self.task.unit, matrices, self.task.weights, self.task.shared_exponent)
        if self.task.data_free:
            return starts.without_data()
        return starts.by_moments(self._moments(), self.config.error_feedback)

    def _learn(self, latents: Mapping[str, LatentWeight]) -> Curve:
        rate, config = self.config.learning_rate, self.config
        searched = {name for name, weight in self.task.weights.items() if weight.exponent.mode == "search"}
        own_exponents = searched if config.learn_exponent and self.task.shared_exponent is None else set()
        kinds = {
            "z": (latents.keys() if config.learn_codes else (), rate, 1.0),
            "log_scale": (latents.keys() if config.learn_scales else (), rate * SCALE_RATE, 1.0),
            "exponent": (own_exponents, rate * EXPONENT_RATE, EXPONENT_UNTIL),
        }
        groups: list[Group] = []
        for kind, (learning, kind_rate, until) in kinds.items():
            for name, latent in latents.items():
                getattr(latent, kind).requires_grad_(name in learning)
            parameters = [getattr(latent, kind) for name, latent in latents.items() if name in learning]
            groups += [Group(parameters, kind_rate, until)] if parameters else []

        def loss(index: torch.Tensor) -> torch.Tensor:
            return self._loss(self.trained[index], self._decoded(latents))

        return train(groups, Objective(loss, lambda: self._held_out_loss(latents), len(self.trained)), self.schedule)

    def _tweak_norms(self, stages: dict[str, float]) -> tuple[dict[str, torch.Tensor], Curve | None]:
        wanted = self.config.tweak_norms and not self.task.data_free
        parameters = norm_parameters(self.task.unit.module) if wanted else {}
        if not parameters:
            return {}, None
        size = torch.cat([parameter.flatten() for parameter in parameters.values()]).abs().mean().clamp_min(1e-3)
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        group = Group(list(parameters.values()), NORM_RATE * float(size))

        def loss(index: torch.Tensor) -> torch.Tensor:
            return self._loss(self.trained[index], {})

        curve = train([group], Objective(loss, lambda: self._held_out_loss({}), len(self.trained)), self.schedule)
        stages["norms"] = curve.best
        tuned = {name: parameter.requires_grad_(False).detach().clone() for name, parameter in parameters.items()}
        return tuned, curve

    def _moments(self) -> dict[str, torch.Tensor]:
        moments = SecondMoments(self.layers)

        @torch.no_grad()
        def run() -> None:
            for index in torch.split(self.trained, self.schedule.batch_size):
                moments.mask = None if self.task.mask is None else self.task.mask[index]
                self._output(index, {})

        return moments.collect(run)

    def _decoded(self, latents: Mapping[str, LatentWeight]) -> dict[str, torch.Tensor]:
        return {
            f"{name}.weight".removeprefix("."): weight_of(self.layers[name], latent()).to(
                self.layers[name].weight.dtype
            )
            for name, latent in latents.items()
        }

    @torch.no_grad()
    def _held_out_loss(self, latents: Mapping[str, LatentWeight]) -> float:
        weights = self._decoded(latents)
        parts = torch.split(self.held_out, self.schedule.batch_size)
        return sum(float(self._loss(part, weights)) * len(part) for part in parts) / len(self.held_out)

    def _loss(self, index: torch.Tensor, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the mean squared error of the block's output relative to the variance of the target."""
        difference = (self._output(index, weights) - self.task.target[index]).float().square()
        mask = _fitting(self.task.mask, difference)
        return (difference.mean() if mask is None else difference[mask[index]].mean()) / self.norm

    def _output(self, index: torch.Tensor, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
        args, kwargs = self.task.feed.batch(index)
        return output_tensor(functional_call(self.task.unit.module, dict(weights), args, kwargs))

    def _target_variance(self) -> float:
        target = self.task.target
        mask = _fitting(self.task.mask, target)
        rows = (target if mask is None else target[mask]).float().flatten(0, -2)
        variance = float(rows.var(0, correction=0).mean())
        if not variance < float("inf"):
            raise NumericsError(
                f"{self.task.unit.name} computes NaN or infinities on the calibration data",
                hint="Check the model on this data; half precision checkpoints may overflow on some inputs.",
            )
        return max(variance, MIN_LOSS_NORM)

    @torch.no_grad()
    def _set(self, decoded: Mapping[str, torch.Tensor]) -> None:
        for name, matrix in decoded.items():
            self.layers[name].weight.copy_(weight_of(self.layers[name], matrix))


def output_tensor(output: Any) -> torch.Tensor:
    """Return the first floating point tensor of what a block returned: its hidden state."""
    return next(x for x in output_tensors(output) if x.is_floating_point())


def norm_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of the normalization layers in a block, by name."""
    return {
        f"{path}.{name}": parameter
        for path, each in module.named_modules()
        if "norm" in type(each).__name__.lower() and path
        for name, parameter in each.named_parameters(recurse=False)
    }


@contextmanager
def quantized_inputs(layers: Mapping[str, nn.Module], quantizers: Mapping[str, nn.Module]) -> Iterator[None]:
    """Pass the inputs of layers through their quantizers while the block ends."""
    with ExitStack() as stack:
        for name, quantizer in quantizers.items():
            stack.callback(layers[name].register_forward_pre_hook(_through(quantizer)).remove)
        yield


def _through(quantizer: nn.Module) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    def hook(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (quantizer(args[0]), *args[1:])

    return hook


def _fitting(mask: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor | None:
    """Return the mask where it stands for the first two dimensions of `x`: those of sequences, not of images."""
    usable = mask is not None and x.dim() == 3 and x.shape[1] == mask.shape[1]
    return mask if usable else None
