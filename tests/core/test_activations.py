"""Coded inputs: values, gradients, what is fitted to data, and what is stored."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from nupes_core.activations import (
    ActivationObserver,
    ActivationQuantizer,
    dynamic_quantizer,
    from_tensors,
    observe,
    token_dims,
)
from nupes_core.config import ActivationConfig, ActivationScaling
from nupes_core.errors import CalibrationError, NumericsError, UnsafeFileError
from nupes_core.storage import INPUT_CODES, input_specs


def _gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _fitted(x: torch.Tensor, config: ActivationConfig) -> ActivationQuantizer:
    observer = ActivationObserver()
    for part in x.chunk(3):
        observer.update(part)
    return observer.fit(config)


def _error(quantizer: nn.Module, x: torch.Tensor) -> float:
    return float((quantizer(x) - x).square().mean() / x.square().mean())


@pytest.mark.parametrize("scaling", ["static", "dynamic"])
@pytest.mark.parametrize("shape", [torch.relu, functional.silu, lambda x: x], ids=["relu", "silu", "signed"])
def test_eight_bits_lose_next_to_nothing(scaling: ActivationScaling, shape: object) -> None:
    x = shape(_gaussian(96, 256))  # type: ignore[operator]
    quantizer = _fitted(x, ActivationConfig(8, scaling=scaling))
    assert _error(quantizer, x) < 2e-4
    assert quantizer(x).unique().numel() <= (256 if scaling == "static" else x.numel())


def test_the_kind_of_input_is_found() -> None:
    x = _gaussian(96, 256)
    config = ActivationConfig(4, scaling="static")
    kinds = [_fitted(shape, config).kind for shape in (x.relu(), x, functional.silu(x), functional.gelu(x))]
    assert kinds == ["unsigned", "signed", "offset", "offset"]


@pytest.mark.parametrize(("bits", "gain"), [(4, 0.9), (3, 0.95)])
@pytest.mark.parametrize("scaling", ["static", "dynamic"])
def test_the_power_grid_beats_the_uniform_one_on_half_normal_inputs(
    bits: int, gain: float, scaling: ActivationScaling
) -> None:
    x = _gaussian(96, 512).abs()
    uniform, power = (_fitted(x, ActivationConfig(bits, grid, scaling)) for grid in ("uniform", "power"))  # type: ignore[arg-type]
    assert power.exponent < 1
    assert _error(power, x) < gain * _error(uniform, x)


def test_the_power_grid_needs_no_data_to_beat_the_uniform_one() -> None:
    x = _gaussian(64, 512) ** 3
    for bits in (3, 4, 8):
        uniform, power = (dynamic_quantizer(ActivationConfig(bits, grid)) for grid in ("uniform", "power"))  # type: ignore[arg-type]
        assert _error(power, x) < 0.9 * _error(uniform, x)


def test_values_are_those_of_the_codes_and_the_nearest_of_them() -> None:
    for grid in ("uniform", "power"):
        x = functional.silu(2 * _gaussian(64, 64))
        quantizer = _fitted(x, ActivationConfig(4, grid, "static"))  # type: ignore[arg-type]
        levels = quantizer.levels()
        assert len(levels) == 16
        assert 0 in levels
        nearest = levels[(x.unsqueeze(-1) - levels).abs().argmin(-1)]
        assert torch.allclose(quantizer(x), nearest, atol=1e-6)
        assert torch.equal(quantizer(quantizer(x)), quantizer(x))


def test_outliers_are_clipped_where_that_lowers_the_error_and_seen_when_rare() -> None:
    x = _gaussian(256, 512)
    x[0, 0] = 30.0
    clipped = _fitted(x, ActivationConfig(4, scaling="static"))
    kept = _fitted(x, ActivationConfig(8, scaling="static"))
    assert clipped.scale < 4
    assert kept.scale > 1.5 * clipped.scale
    percentile = _fitted(x, ActivationConfig(8, scaling="static", range="percentile"))
    assert 3.4 < percentile.scale < 4.4


def test_each_token_and_each_sample_has_its_own_dynamic_scale() -> None:
    x = _gaussian(8, 64)
    scales = torch.logspace(-3, 3, 8)
    quantizer = dynamic_quantizer(ActivationConfig(8))
    assert torch.allclose(quantizer(x * scales[:, None]), quantizer(x) * scales[:, None], rtol=1e-4)
    images = _gaussian(8, 3, 5, 5)
    by_sample = dynamic_quantizer(ActivationConfig(8), token_dims=token_dims(nn.Conv2d(3, 3, 1)))
    assert torch.allclose(
        by_sample(images * scales.view(-1, 1, 1, 1)), by_sample(images) * scales.view(-1, 1, 1, 1), rtol=1e-4
    )
    assert torch.equal(quantizer(torch.zeros(2, 4)), torch.zeros(2, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_shape_and_dtype_stay_and_casts_of_the_model_change_nothing(dtype: torch.dtype) -> None:
    x = _gaussian(4, 6, 32)
    quantizer = _fitted(x, ActivationConfig(8, "power", "static"))
    before = quantizer(x)
    cast = nn.Sequential(quantizer).to(dtype)
    assert cast(x.to(dtype)).dtype == dtype
    assert torch.equal(cast(x), before)


def test_the_gradient_passes_within_a_static_range_and_everywhere_with_dynamic_scales() -> None:
    x = (2 * _gaussian(16, 64)).requires_grad_()
    static = _fitted(_gaussian(64, 64), ActivationConfig(4, scaling="static"))
    (grad,) = torch.autograd.grad(static(x).sum(), x)
    levels = static.levels()
    assert torch.equal(grad, ((x >= levels[0]) & (x <= levels[-1])).float())
    assert 0 < grad.mean() < 1
    (everywhere,) = torch.autograd.grad(dynamic_quantizer(ActivationConfig(4))(x).sum(), x)
    assert torch.equal(everywhere, torch.ones_like(x))


def test_gradients_reach_the_layer_before_under_functional_call() -> None:
    model = nn.Sequential(nn.Linear(8, 8), dynamic_quantizer(ActivationConfig(4)), nn.Linear(8, 1))
    x = _gaussian(5, 8)

    def loss(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        out: torch.Tensor = functional_call(model, parameters, (x,))
        return out.square().mean()

    parameters = {name: each.detach() for name, each in model.named_parameters()}
    by_func = torch.func.grad(loss)(parameters)
    loss(dict(model.named_parameters())).backward()
    assert by_func["0.weight"].abs().sum() > 0
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert torch.allclose(by_func[name], parameter.grad, atol=1e-6)


def test_what_is_stored_restores_the_quantizer_bit_for_bit() -> None:
    x = functional.gelu(_gaussian(64, 64))
    for config in (ActivationConfig(4, "power", "static"), ActivationConfig(3), ActivationConfig(8, scaling="static")):
        quantizer = _fitted(x, config)
        stored = {name: tensor.clone() for name, tensor in quantizer.to_tensors().items()}
        assert {name: (tuple(t.shape), "I16") for name, t in stored.items()} == input_specs()
        assert torch.equal(from_tensors(config, stored)(x), quantizer(x))


@pytest.mark.parametrize(
    "codes", [[0, 3, 0, 140], [0, 0, 16, 140], [0, 0, -1, 140], [0, 0, 0, 256], [1, 2, 0, 140], [0, -1, 0, 140]]
)
def test_codes_that_no_quantizer_writes_are_refused(codes: list[int]) -> None:
    with pytest.raises(UnsafeFileError, match="activation codes"):
        from_tensors(ActivationConfig(4), {INPUT_CODES: torch.tensor(codes, dtype=torch.int16)})


def test_stored_codes_of_another_shape_are_refused() -> None:
    for codes in (torch.zeros(5, dtype=torch.int16), torch.zeros(4)):
        with pytest.raises(UnsafeFileError, match=r"torch\.int16"):
            from_tensors(ActivationConfig(4), {INPUT_CODES: codes})


def test_layers_are_observed_while_the_model_runs() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))
    layers = {"0": model[0], "3": model[3]}
    seen = observe(layers, lambda: model(_gaussian(7, 2, 2, 2)))
    assert {name: each.count for name, each in seen.items()} == {"0": 56, "3": 84}
    assert seen["3"].fit(ActivationConfig(scaling="static")).kind == "unsigned"
    assert not model[0]._forward_pre_hooks
    again = observe(layers, lambda: model(_gaussian(7, 2, 2, 2)))
    config = ActivationConfig(4, "power", "static")
    assert torch.equal(again["0"].fit(config).codes, seen["0"].fit(config).codes)


def test_nothing_seen_and_broken_numbers_are_told() -> None:
    with pytest.raises(CalibrationError, match="saw no input"):
        ActivationObserver().fit(ActivationConfig())
    with pytest.raises(NumericsError, match="NaN"):
        ActivationObserver().update(torch.tensor([1.0, float("nan")]))
