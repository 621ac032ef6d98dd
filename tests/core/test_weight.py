from __future__ import annotations

import itertools

import pytest
import torch

from nupes_core.config import ExponentConfig, WeightConfig
from nupes_core.errors import InvalidConfigError, NumericsError
from nupes_core.quantizer import weight as weight_module
from nupes_core.quantizer.weight import quantize_weight
from nupes_core.storage import resolve_format, tensor_specs, weight_nbytes

DTYPES = {"U8": torch.uint8, "I16": torch.int16}


def normal(rows: int, cols: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))


def relative_error(w: torch.Tensor, decoded: torch.Tensor) -> float:
    return float((w.double() - decoded.double()).square().sum() / w.double().square().sum())


@pytest.mark.parametrize("group_size", [-1, 1, 7, 16, 64, 100])
@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (3, 5), (40, 83), (96, 64)])
def test_tensors_have_the_planned_shapes_and_bytes_whatever_the_shape(rows: int, cols: int, group_size: int) -> None:
    config = WeightConfig(bits=3, group_size=group_size)

    found = quantize_weight(normal(rows, cols), config)

    assert found.format == resolve_format(rows, cols, config)
    specs = tensor_specs(found.format)
    assert {name: (tuple(t.shape), t.dtype) for name, t in found.tensors.items()} == {
        name: (shape, DTYPES[dtype]) for name, (shape, dtype) in specs.items()
    }
    assert found.nbytes == weight_nbytes(found.format) == sum(t.nbytes for t in found.tensors.values())
    assert found.dequantize().shape == (rows, cols)


@pytest.mark.parametrize("scope", ["global", "layer", "row", "group"])
@pytest.mark.parametrize("bits", range(2, 9))
def test_error_falls_at_least_threefold_with_two_bits_less(bits: int, scope: str) -> None:
    config = WeightConfig(bits=bits, exponent=ExponentConfig(scope=scope))  # type: ignore[arg-type]

    error = relative_error(w := normal(64, 256), quantize_weight(w, config).dequantize())

    assert error < {2: 0.12, 3: 0.033, 4: 0.0083, 5: 0.0022, 6: 0.0006, 7: 0.00015, 8: 0.00004}[bits]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_every_float_dtype_goes_in_and_comes_out(dtype: torch.dtype) -> None:
    w = normal(32, 64).to(dtype)

    decoded = quantize_weight(w, WeightConfig(bits=8)).dequantize(dtype)

    assert decoded.dtype == dtype
    assert relative_error(w, decoded) < 1e-4


def test_a_transposed_view_is_coded_like_its_copy() -> None:
    w = normal(64, 96).T

    assert same_bytes(quantize_weight(w, WeightConfig()), quantize_weight(w.contiguous(), WeightConfig()))


@pytest.mark.parametrize("layout", ["signed", "midrise", "paper"])
def test_zero_groups_and_rows_decode_to_zero(layout: str) -> None:
    w = normal(32, 64)
    w[3] = 0
    w[5, 16:32] = 0

    decoded = quantize_weight(w, WeightConfig(bits=2, group_size=16, layout=layout)).dequantize()  # type: ignore[arg-type]

    assert not decoded[3].any()
    assert not decoded[5, 16:32].any()
    assert decoded[4].any()


def test_a_matrix_of_zeros_decodes_to_zeros() -> None:
    assert not quantize_weight(torch.zeros(16, 64), WeightConfig()).dequantize().any()


@pytest.mark.parametrize("magnitude", [1e-20, 1e-6, 1e6, 1e20])
def test_the_error_does_not_depend_on_the_magnitude(magnitude: float) -> None:
    w = normal(32, 128) * magnitude

    assert relative_error(w, quantize_weight(w, WeightConfig()).dequantize()) < 0.0085


def same_bytes(a: weight_module.QuantizedWeight, b: weight_module.QuantizedWeight) -> bool:
    return all(torch.equal(a.tensors[name], b.tensors[name]) for name in tensor_specs(a.format))


def test_bytes_do_not_depend_on_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    w = normal(200, 333)
    threads = torch.get_num_threads()
    monkeypatch.setattr(weight_module, "CHUNK_WEIGHTS", 1 << 13)
    results = []
    try:
        for count, scope in itertools.product((1, 3), ("layer", "row", "group")):
            torch.set_num_threads(count)
            results.append(quantize_weight(w, WeightConfig(exponent=ExponentConfig(scope=scope))))  # type: ignore[arg-type]
    finally:
        torch.set_num_threads(threads)

    assert all(same_bytes(one, three) for one, three in zip(results[:3], results[3:], strict=True))


def test_bytes_do_not_depend_on_the_size_of_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    w = normal(200, 333)
    whole = quantize_weight(w, WeightConfig(bits=3, group_size=20))
    monkeypatch.setattr(weight_module, "CHUNK_WEIGHTS", 1)

    small = quantize_weight(w, WeightConfig(bits=3, group_size=20))

    assert same_bytes(whole, small)
    assert torch.equal(whole.dequantize(), small.dequantize())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_not_finite_is_refused_with_its_row(value: float) -> None:
    w = normal(32, 64)
    w[7, 9] = value

    with pytest.raises(NumericsError, match="row 7"):
        quantize_weight(w, WeightConfig())


def test_fixed_and_shared_exponents_are_used_as_given() -> None:
    w = normal(32, 64)
    fixed = WeightConfig(exponent=ExponentConfig(mode="fixed", value=0.5))

    assert quantize_weight(w, fixed).exponent == pytest.approx(0.5)
    assert quantize_weight(w, WeightConfig(), shared_exponent=0.65).exponent == pytest.approx(0.65)


@pytest.mark.parametrize("importance", [torch.ones(63), -torch.ones(64), torch.zeros(64), torch.full((64,), torch.nan)])
def test_unusable_importance_is_refused(importance: torch.Tensor) -> None:
    with pytest.raises(InvalidConfigError, match="importance"):
        quantize_weight(normal(8, 64), WeightConfig(), importance=importance)


def test_small_groups_with_exponents_of_their_own_halve_the_error_at_half_a_bit() -> None:
    w = normal(256, 512)
    fine = WeightConfig(group_size=16, scale_bits=7, exponent=ExponentConfig(scope="group"))
    coarse, found = quantize_weight(w, WeightConfig(group_size=128)), quantize_weight(w, fine)

    assert 8 * found.nbytes / w.numel() < 4.5
    assert relative_error(w, found.dequantize()) < 0.52 * relative_error(w, coarse.dequantize())
