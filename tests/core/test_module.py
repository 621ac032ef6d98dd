"""`quantize_model` replaces the layers of any torch module in place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import nupes_core
from nupes_core import LayerOverride, LayerSelection, quantize_model
from nupes_core.config import ActivationConfig
from nupes_core.errors import CalibrationError, InvalidConfigError, NoQuantizableLayersError, NumericsError
from nupes_core.layers import QuantizedConv1D, QuantizedConv2d, QuantizedLayer, QuantizedLinear, dequantize_modules
from nupes_core.loading import load
from tests.core.tiny import QUICK, build, save


def _mlp() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 40, bias=False))


def test_linear_layers_are_replaced_and_outputs_stay_close() -> None:
    model, x = _mlp(), torch.randn(8, 48)
    before = model(x)
    report = quantize_model(model, QUICK)
    assert isinstance(model[0], QuantizedLinear)
    assert isinstance(model[2], QuantizedLinear)
    after = model(x)
    assert 10 * torch.log10(before.square().sum() / (before - after).square().sum()) > 15
    assert report.quantized_params == 48 * 64 + 64 * 40
    assert 4 < report.bits_per_weight < 5
    assert [layer.name for layer in report.layers] == ["0", "2"]
    assert all(layer.sqnr_db and layer.sqnr_db > 17 for layer in report.layers)


def test_the_report_adds_up_to_what_the_model_holds() -> None:
    model = _mlp()
    before = sum(parameter.nbytes for parameter in model.parameters())
    report = quantize_model(model, QUICK)
    held = [*model.parameters(), *model.buffers()]
    assert report.bytes_before == before
    assert report.bytes_after == sum(tensor.nbytes for tensor in held)
    assert report.params == 48 * 64 + 64 * 40 + 64


def test_convolutions_are_quantized_as_rows_of_kernels() -> None:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=2), nn.ReLU(), nn.Conv2d(16, 8, 1))
    x = torch.randn(2, 8, 9, 9)
    before = model(x)
    report = quantize_model(model, QUICK)
    assert isinstance(model[0], QuantizedConv2d)
    assert model[0].weight.shape == (16, 4, 3, 3)
    assert report.layers[0].shape == (16, 4, 3, 3)
    assert model(x).shape == before.shape
    assert 10 * torch.log10(before.square().sum() / (before - model(x)).square().sum()) > 12


def test_gpt2_layers_are_quantized_by_their_outputs() -> None:
    model = build("gpt2")
    quantize_model(model, QUICK)
    layer = model.transformer.h[0].attn.c_attn
    assert isinstance(layer, QuantizedConv1D)
    assert (layer.format.rows, layer.format.cols) == (96, 32)
    assert layer.weight.shape == (32, 96)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_module_and_a_folder_get_the_same_codes(family: str, tmp_path: Path) -> None:
    source = save(family, tmp_path / "source")
    nupes_core.quantize(source, tmp_path / "out", QUICK)
    from_folder = load(tmp_path / "out").state_dict()
    module = load(source)
    quantize_model(module, QUICK)
    from_module = module.state_dict()
    assert sorted(from_module) == sorted(from_folder)
    assert all(torch.equal(from_module[name], from_folder[name]) for name in from_module)


def test_selection_excludes_overrides_and_skips() -> None:
    model = _mlp()
    selection = LayerSelection(exclude=("^2$",), overrides=(LayerOverride("0", bits=8, group_size=16),))
    report = quantize_model(model, replace(QUICK, layers=selection))
    assert isinstance(model[2], nn.Linear)
    assert (report.layers[0].bits, report.layers[0].group_size) == (8, 16)
    assert "excluded" in (report.layers[1].skipped_reason or "")


def test_tied_weights_subclasses_and_routers_are_left_alone() -> None:
    class Scaled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(x, 2 * self.weight, self.bias)

    model = nn.ModuleDict(
        {"tied": nn.Linear(32, 32), "twin": nn.Linear(32, 32), "own": Scaled(32, 32), "plain": nn.Linear(32, 32)}
    )
    model["twin"].weight = model["tied"].weight
    report = quantize_model(model, QUICK)
    reasons = {layer.name: layer.skipped_reason for layer in report.layers}
    assert "tied" in (reasons["tied"] or "")
    assert "Scaled" in (reasons["own"] or "")
    assert reasons["plain"] is None
    mixtral = build("mixtral")
    quantize_model(mixtral, QUICK)
    assert not any(isinstance(module, QuantizedLayer) for name, module in mixtral.named_modules() if "gate" in name)


def test_one_exponent_for_the_model_when_the_scope_is_global() -> None:
    model = nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 16))
    weights = replace(QUICK.weights, group_size=8, exponent=nupes_core.ExponentConfig(scope="global"))
    report = quantize_model(model, replace(QUICK, weights=weights))
    assert len({layer.exponent for layer in report.layers}) == 1


def test_dequantize_modules_restores_plain_layers_of_the_same_function() -> None:
    model, x = _mlp(), torch.randn(3, 48)
    quantize_model(model, QUICK)
    quantized = model(x)
    dequantize_modules(model)
    assert type(model[0]) is nn.Linear
    assert torch.allclose(model(x), quantized, atol=1e-6)


def test_bad_calls_are_refused_and_change_nothing() -> None:
    model = _mlp()
    with pytest.raises(InvalidConfigError, match="calibration"):
        quantize_model(model, QUICK, calibration=[torch.zeros(1, 48)])
    with pytest.raises(NoQuantizableLayersError):
        quantize_model(model, replace(QUICK, layers=LayerSelection(exclude=(".",))))
    with pytest.raises(NoQuantizableLayersError):
        quantize_model(nn.Linear(64, 64), QUICK)
    assert type(model[0]) is nn.Linear


def test_a_weight_that_is_not_finite_is_named() -> None:
    model = _mlp()
    with torch.no_grad():
        model[2].weight[3, 4] = float("nan")
    with pytest.raises(NumericsError, match=r"^2: row 3"):
        quantize_model(model, QUICK)


class _ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.body, self.head = nn.Conv2d(16, 16, 3, padding=1), nn.Linear(16, 10)
        self.norm.running_mean.uniform_(-1, 1)
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.body(torch.relu(self.norm(self.stem(x))))
        return self.head(y.relu().mean((2, 3)))


def _images(count: int = 16) -> torch.Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(2))


def _cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0))


def test_a_convolution_net_loses_its_batch_norms_and_keeps_its_edges_precise() -> None:
    model = _ConvNet().eval()
    with torch.no_grad():
        before = model(_images())
        report = quantize_model(model, replace(QUICK, activations=ActivationConfig(4)))
        after = model(_images())
    assert isinstance(model.norm, nn.Identity)
    assert [layer.bits for layer in report.layers] == [8, 4, 8]
    assert [layer.activation_bits for layer in report.layers] == [8, 4, 8]
    assert _cosine(after, before) > 0.95


def test_the_edges_are_what_the_user_says() -> None:
    own = (LayerOverride("stem", bits=5), LayerOverride("head", bits=3))
    chosen = replace(QUICK, layers=LayerSelection(overrides=own))
    assert [layer.bits for layer in quantize_model(_ConvNet(), chosen).layers] == [5, 4, 3]
    assert {layer.bits for layer in quantize_model(_ConvNet(), QUICK, edge_bits=None).layers} == {4}
    assert {layer.bits for layer in quantize_model(_mlp(), QUICK).layers} == {4}


@pytest.mark.parametrize("scaling", ["dynamic", "static"])
@pytest.mark.parametrize("grid", ["uniform", "power"])
def test_eight_bit_activations_next_to_eight_bit_weights_change_little(scaling: str, grid: str) -> None:
    model = _ConvNet().eval()
    config = replace(QUICK, weights=replace(QUICK.weights, bits=8), activations=ActivationConfig(8, grid, scaling))  # type: ignore[arg-type]
    with torch.no_grad():
        before = model(_images())
        report = quantize_model(model, config, calibration=_images())
        after = model(_images())
    assert _cosine(after, before) > 0.9995
    assert {layer.activation_bits for layer in report.layers} == {8}
    kinds = {name: module.input_quantizer.kind for name, module in model.named_children() if name in ("body", "head")}
    assert set(kinds.values()) == {"unsigned"}


def test_static_activations_need_data_that_reaches_every_layer() -> None:
    static = replace(QUICK, activations=ActivationConfig(8, scaling="static"))
    with pytest.raises(CalibrationError, match="needs calibration"):
        quantize_model(_ConvNet(), static)
    model = nn.ModuleDict({"used": nn.Linear(48, 64), "unused": nn.Linear(48, 64)})
    model.forward = lambda x: model["used"](x)  # type: ignore[method-assign]
    with pytest.raises(CalibrationError, match="unused"):
        quantize_model(model, static, calibration=torch.randn(8, 48))


def test_activations_of_a_language_model_are_coded_without_data() -> None:
    tokens = torch.arange(20)[None] + 3
    model, reference = build("llama"), build("llama")
    config = replace(QUICK, weights=replace(QUICK.weights, bits=8), activations=ActivationConfig(8))
    quantize_model(model, config)
    with torch.no_grad():
        assert _cosine(model(tokens).logits, reference(tokens).logits) > 0.9995


def test_images_correct_the_biases_of_a_convolution_net_and_never_for_the_worse() -> None:
    plain, corrected, reference = (_ConvNet().eval() for _ in range(3))
    rough = replace(QUICK, weights=replace(QUICK.weights, bits=2))
    quantize_model(plain, rough)
    quantize_model(corrected, rough, calibration=_images(64))
    with torch.no_grad():
        x = _images(96)[64:]
        wanted, before, after = reference(x), plain(x), corrected(x)
    assert _cosine(after, wanted) >= _cosine(before, wanted)
    assert torch.equal(plain.body.weight, corrected.body.weight)
    assert not torch.equal(plain.body.bias, corrected.body.bias)
