from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nupes_core.config import ExponentConfig, WeightConfig
from nupes_core.quantizer import compiled, kernels, reference
from nupes_core.quantizer.grid import exponent_code
from nupes_core.quantizer.scales import block_bases
from nupes_core.quantizer.search import Sample, fit_candidates, fit_exponent, fit_row_exponents
from nupes_core.storage import WeightFormat, resolve_format


def gaussian(rows: int, cols: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))


def laplace(rows: int, cols: int) -> torch.Tensor:
    u = torch.rand(rows, cols, generator=torch.Generator().manual_seed(1)) - 0.5
    return -u.sign() * (1 - 2 * u.abs()).clamp_min(1e-7).log()


def sample(w: torch.Tensor, config: WeightConfig) -> Sample:
    fmt = resolve_format(*w.shape, config)
    bases = block_bases(w.abs().amax(1), fmt)
    return Sample(w, torch.ones(w.shape[1]), bases[torch.arange(len(w)) // fmt.block_rows], fmt)


@pytest.mark.parametrize(
    ("bits", "mse"),
    [(2, 0.1174), (3, 0.0331), (4, 0.00836), (5, 0.00213)],
    ids=["2 bits", "3 bits", "4 bits", "5 bits"],
)
def test_gaussian_error_is_that_of_the_method_text(bits: int, mse: float) -> None:
    w = gaussian(512, 1024)
    fixed = sample(w, WeightConfig(bits=bits, group_size=128))

    found = fixed.error((exponent_code(0.8 if bits > 2 else 0.92),)) / w.numel()

    assert found <= mse * 1.03
    assert found >= mse * 0.9


@pytest.mark.parametrize("bits", [3, 4])
def test_heavier_tails_want_a_smaller_exponent(bits: int) -> None:
    config = WeightConfig(bits=bits, group_size=128)

    bell, peaked = fit_exponent(sample(gaussian(128, 512), config)), fit_exponent(sample(laplace(128, 512), config))

    assert 0.7 < bell < 0.95
    assert peaked < bell - 0.05


def test_the_fitted_exponent_beats_its_neighbours() -> None:
    fixed = sample(laplace(128, 512), WeightConfig(group_size=64))
    a = fit_exponent(fixed)

    best = fixed.error((exponent_code(a),))

    assert all(best <= fixed.error((exponent_code(other),)) for other in (a - 0.15, a + 0.15, 1.0))


def test_a_choice_of_exponents_in_each_group_lowers_the_error_by_a_tenth() -> None:
    fixed = sample(gaussian(128, 512), WeightConfig(bits=3, group_size=16, exponent=ExponentConfig(scope="group")))

    chosen = fixed.error(fit_candidates(fixed))

    assert chosen < 0.9 * fixed.error((exponent_code(fit_exponent(fixed)),))


def test_rows_of_different_shape_get_different_exponents() -> None:
    w = torch.cat([gaussian(16, 2048), laplace(16, 2048)])

    codes = fit_row_exponents(sample(w, WeightConfig(exponent=ExponentConfig(scope="row")))).float()

    assert codes[16:].mean() < codes[:16].mean()


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("scope", ["layer", "group"])
@pytest.mark.parametrize("layout", ["signed", "midrise", "paper"])
def test_compiled_search_and_decoder_agree_with_the_reference(bits: int, scope: str, layout: str) -> None:
    w = gaussian(24, 83, seed=bits) * torch.linspace(0.1, 3, 24)[:, None]
    config = WeightConfig(bits=bits, group_size=16, layout=layout, exponent=ExponentConfig(scope=scope))  # type: ignore[arg-type]
    fixed = sample(w, config)
    exponents = (
        torch.arange(90, 90 + 20 * fixed.format.candidates, 20, dtype=torch.uint8).expand(len(w), -1).contiguous()
    )
    arguments = (fixed.w, fixed.h, fixed.bases, exponents, fixed.format)

    fast, slow = compiled.search_rows(*arguments), reference.search_rows(*arguments)

    assert fast.errors.sum() == pytest.approx(float(slow.errors.sum()), rel=0.04)
    decoded = compiled.decode_rows(fast.codes, fast.words, fixed.bases, exponents, fixed.format)
    again = reference.decode_rows(fast.codes, fast.words, fixed.bases, exponents, fixed.format)
    assert torch.equal(decoded, again)
    assert float(((w - decoded) ** 2).sum()) == pytest.approx(float(fast.errors.sum()), rel=0.03)
    assert codes_are_nearest(fast.codes, w, decoded, fixed, exponents)


def codes_are_nearest(
    codes: torch.Tensor, w: torch.Tensor, decoded: torch.Tensor, fixed: Sample, exponents: torch.Tensor
) -> bool:
    """No neighbouring code, decoded under the same scales, is closer."""
    fmt: WeightFormat = fixed.format
    found = compiled.search_rows(fixed.w, fixed.h, fixed.bases, exponents, fmt)
    for step in (-1, 1):
        moved = (codes.int() + step).clamp(0, (1 << fmt.bits) - 1).to(torch.uint8)
        other = compiled.decode_rows(moved, found.words, fixed.bases, exponents, fmt)
        if bool(((w - other).abs() < (w - decoded).abs() * (1 - 1e-5) - 1e-7).any()):
            return False
    return True


def test_importance_moves_the_error_to_the_columns_that_matter_less() -> None:
    w = gaussian(64, 256)
    fixed = sample(w, WeightConfig(bits=3, group_size=64))
    h = torch.ones(256)
    h[::8] = 30
    exponents = torch.full((64, 1), exponent_code(0.85), dtype=torch.uint8)

    def column_error(weights: torch.Tensor) -> float:
        found = compiled.search_rows(w, weights, fixed.bases, exponents, fixed.format)
        decoded = compiled.decode_rows(found.codes, found.words, fixed.bases, exponents, fixed.format)
        return float(((w - decoded) ** 2)[:, ::8].mean())

    assert column_error(h) < 0.8 * column_error(torch.ones(256))


def test_a_foreign_cache_folder_is_not_used(tmp_path: Path) -> None:
    own, open_to_others = tmp_path / "own", tmp_path / "open"
    open_to_others.mkdir(mode=0o777)
    open_to_others.chmod(0o777)

    assert kernels._private_folder(own) == own
    assert kernels._private_folder(own) == own
    fresh = kernels._private_folder(open_to_others)
    assert fresh != open_to_others
    fresh.rmdir()
