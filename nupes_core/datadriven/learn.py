"""The training loop of one block: Adam with a cosine to 0, keeping the state of least held-out loss, start included."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

CHECKS = 5
"""Looks at the held-out loss during a training."""

BETAS = (0.9, 0.95)


@dataclass(frozen=True)
class Group:
    """Parameters that share a learning rate.

    Attributes:
        rate: of Adam, in units of the parameters.
        until: share of the steps after which they stay as they are.
    """

    parameters: Sequence[nn.Parameter]
    rate: float
    until: float = 1.0


@dataclass(frozen=True)
class Objective:
    """What is minimised.

    Attributes:
        batch_loss: mean loss on the training samples with these indices, differentiable.
        held_out_loss: loss on samples that are not trained on.
        samples: how many there are to train on.
    """

    batch_loss: Callable[[torch.Tensor], torch.Tensor]
    held_out_loss: Callable[[], float]
    samples: int


@dataclass
class Curve:
    """What a training showed.

    Attributes:
        train: loss of each step, on its batch.
        held_out: step -> loss on the held-out samples; step 0 is the start.
        best_step: whose state was kept.
    """

    train: list[float] = field(default_factory=list)
    held_out: dict[int, float] = field(default_factory=dict)
    best_step: int = 0

    @property
    def best(self) -> float:
        """Loss on the held-out samples of what was kept."""
        return self.held_out[self.best_step]


@dataclass(frozen=True)
class Schedule:
    """How long to train.

    Attributes:
        steps: of the optimizer.
        batch_size: samples in a step.
        generator: chooses the batches.
        on_step: called after each step.
    """

    steps: int
    batch_size: int
    generator: torch.Generator
    on_step: Callable[[], None] = lambda: None


def train(groups: Sequence[Group], objective: Objective, schedule: Schedule) -> Curve:
    """Train parameters in place; the best state by held-out loss is kept."""
    curve = Curve(held_out={0: objective.held_out_loss()})
    parameters = [parameter for group in groups for parameter in group.parameters]
    if not parameters or not schedule.steps:
        return curve
    optimizer = torch.optim.Adam(
        [{"params": list(group.parameters), "lr": group.rate} for group in groups], betas=BETAS, eps=1e-12
    )
    best = _copies(parameters)
    every = max(schedule.steps // CHECKS, 1)
    batches = _batches(objective.samples, schedule.batch_size, schedule.generator)
    for step in range(1, schedule.steps + 1):
        for settings, group in zip(optimizer.param_groups, groups, strict=True):
            settings["lr"] = group.rate * _cosine((step - 1) / schedule.steps / group.until)
        optimizer.zero_grad(set_to_none=True)
        loss = objective.batch_loss(next(batches))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        curve.train.append(float(loss.detach()))
        schedule.on_step()
        if step % every == 0 or step == schedule.steps:
            curve.held_out[step] = objective.held_out_loss()
            if curve.held_out[step] < curve.best:
                curve.best_step, best = step, _copies(parameters)
    _restore(parameters, best)
    return curve


def _cosine(progress: float) -> float:
    return (1 + math.cos(math.pi * min(progress, 1.0))) / 2


def _batches(count: int, size: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Yield batches of shuffled samples for ever; each sample once before any is seen twice."""
    while True:
        order = torch.randperm(count, generator=generator)
        yield from (order[start : start + size] for start in range(0, max(count - size, 0) + 1, size))


def _copies(parameters: Sequence[nn.Parameter]) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in parameters]


@torch.no_grad()
def _restore(parameters: Sequence[nn.Parameter], state: Sequence[torch.Tensor]) -> None:
    for parameter, value in zip(parameters, state, strict=True):
        parameter.copy_(value)
