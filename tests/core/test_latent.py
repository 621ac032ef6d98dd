"""Weights while they are trained: exact start, straight-through gradients, and the two layer-wise solvers."""

from __future__ import annotations

import pytest
import torch

from nupes_core.config import ExponentConfig, WeightConfig
from nupes_core.datadriven.descent import descend
from nupes_core.datadriven.feedback import feed_back, inverse_factor
from nupes_core.datadriven.latent import Coded, LatentWeight
from nupes_core.quantizer.weight import quantize_weight

CONFIGS = [
    WeightConfig(4, 16),
    WeightConfig(3, 20, ExponentConfig(scope="group")),
    WeightConfig(2, 16),
    WeightConfig(4, -1, ExponentConfig(scope="row")),
    WeightConfig(8, 24, layout="paper"),
]


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


W = gaussian(40, 72) * 0.02
X = gaussian(600, 72, seed=1) @ (torch.eye(72) + 0.15 * gaussian(72, 72, seed=2))
H = X.T @ X / len(X)


def loss(decoded: torch.Tensor) -> float:
    error = W - decoded
    return float(((error @ H) * error).sum())


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_unpacking_and_packing_are_inverse(config: WeightConfig) -> None:
    weight = quantize_weight(W, config)
    again = Coded.unpack(weight).pack()
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in weight.tensors.items())


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_a_latent_weight_starts_as_what_is_stored_and_snaps_back_to_it(config: WeightConfig) -> None:
    weight = quantize_weight(W, config)
    latent = LatentWeight(Coded.unpack(weight), W)
    assert torch.equal(latent(), weight.dequantize())
    stored = latent.snapped().pack()
    assert all(torch.equal(stored.tensors[name], tensor) for name, tensor in weight.tensors.items())
    distance = (latent.z - latent.z.round()).abs().detach()
    assert 0.1 < float(distance.mean()) < 0.4
    assert float(distance.max()) < 0.5


@pytest.mark.parametrize("kind", ["log_scale", "exponent"])
@pytest.mark.parametrize("config", [CONFIGS[0], CONFIGS[1], CONFIGS[3]], ids=str)
def test_gradients_of_scales_and_exponents_agree_with_finite_differences(kind: str, config: WeightConfig) -> None:
    latent = LatentWeight(Coded.unpack(quantize_weight(W, config)), W)
    direction = gaussian(40, 72, seed=3)
    (latent() * direction).sum().backward()
    parameter = getattr(latent, kind)
    found = parameter.grad.clone()
    position = (0, -1)
    with torch.no_grad():
        values = []
        for step in (2, -2):
            parameter[position] += step
            values.append(float((latent() * direction).double().sum()))
            parameter[position] -= step
    assert (values[0] - values[1]) / 4 == pytest.approx(float(found[position]), rel=0.05)


def test_the_slope_of_codes_is_the_secant_of_the_cell_even_at_zero() -> None:
    latent = LatentWeight(Coded.unpack(quantize_weight(W, WeightConfig(3, 16))), W)
    latent().sum().backward()
    zero = latent.z.round() == 4
    assert bool(zero.any())
    assert bool((latent.z.grad[zero] != 0).all())
    assert torch.isfinite(latent.z.grad).all()


@pytest.mark.parametrize("config", CONFIGS[:4], ids=str)
def test_error_feedback_and_descent_each_lower_the_layer_wise_error(config: WeightConfig) -> None:
    start = quantize_weight(W, config)
    fed = feed_back(W, Coded.unpack(start), inverse_factor(H))
    descended = descend(W, fed.coded, H)
    errors = [loss(each.dequantize()) for each in (start, fed.coded.pack(), descended.coded.pack())]
    assert errors[1] < 0.8 * errors[0]
    assert errors[2] < 0.97 * errors[1]
    assert torch.equal(LatentWeight(descended.coded, descended.target).snapped().codes, descended.coded.codes)


def test_without_correlation_error_feedback_is_plain_rounding() -> None:
    start = Coded.unpack(quantize_weight(W, WeightConfig(4, 16)))
    fed = feed_back(W, start, inverse_factor(torch.eye(72)))
    assert torch.equal(fed.target, W)
    assert torch.equal(fed.coded.codes, start.codes)


def test_inputs_that_were_never_seen_do_not_break_the_factorization() -> None:
    dead = H.clone()
    dead[:, 5] = dead[5] = 0
    factor = inverse_factor(dead)
    assert torch.isfinite(factor).all()
    singular = torch.ones(72, 72)
    assert torch.isfinite(inverse_factor(singular)).all()


def test_groups_of_zeros_stay_zero() -> None:
    w = W.clone()
    w[:, :16] = 0
    start = Coded.unpack(quantize_weight(w, WeightConfig(4, 16)))
    found = descend(w, start, H)
    assert float(found.coded.pack().dequantize()[:, :16].abs().max()) < 0.05
    latent = LatentWeight(start, w)
    assert torch.equal(latent()[:, :16], torch.zeros(40, 16))
