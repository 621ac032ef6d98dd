"""Super-blocks of llama.cpp: their bytes as the package `gguf` reads them, and the search for them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import gguf
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nupes_core import QuantizationConfig, WeightConfig
from nupes_core.config import ExponentConfig, GgmlLayout
from nupes_core.errors import InvalidConfigError, NumericsError
from nupes_core.gguf.blocktypes import LAYOUTS, SUPERBLOCKS, TYPES, SuperType
from nupes_core.gguf.superblocks import pack_superblocks, unpack_superblocks
from nupes_core.gguf.superblocksearch import SuperBlocks
from nupes_core.quantizer import compiled, reference
from nupes_core.quantizer.grid import integer_levels
from nupes_core.quantizer.histogram import weight_histogram
from nupes_core.quantizer.weight import QuantizedWeight, quantize_weight, to_superblocks
from nupes_core.recipe import AS_ASKED

KINDS = pytest.mark.parametrize("kind", SUPERBLOCKS.values(), ids=SUPERBLOCKS)
UNIFORM = ExponentConfig("fixed", "layer", 1.0)


def config(name: str) -> WeightConfig:
    kind = TYPES[name]
    return WeightConfig(kind.bits, kind.group_size, UNIFORM, kind.layout, 10)


def relative_error(w: torch.Tensor, weight: QuantizedWeight) -> float:
    return float((weight.dequantize_ggml() - w).square().sum() / w.square().sum())


def as_llama_cpp_reads(weight: QuantizedWeight, name: str) -> torch.Tensor:
    return torch.from_numpy(gguf.dequantize(weight.ggml_blocks().numpy(), gguf.GGMLQuantizationType[name]))


def random_blocks(kind: SuperType, n: int, seed: int) -> SuperBlocks:
    generator = torch.Generator().manual_seed(seed)
    groups = kind.block // kind.group_size

    def integers(least: int, most: int, *shape: int, dtype: torch.dtype = torch.int16) -> torch.Tensor:
        return torch.randint(least, most + 1, shape, generator=generator, dtype=dtype)

    floats = torch.randn(2, n, generator=generator).half()
    return SuperBlocks(
        codes=integers(0, (1 << kind.bits) - 1, n, groups, kind.group_size, dtype=torch.uint8),
        scales=integers(*kind.scale_range, n, groups),
        mins=integers(0, kind.most_min, n, groups),
        d=floats[0],
        dmin=floats[1] if kind.most_min else torch.zeros_like(floats[1]),
    )


@KINDS
@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 5), seed=st.integers(0, 2**32))
def test_bytes_decode_as_the_package_gguf_decodes_them_and_read_back_whole(kind: SuperType, n: int, seed: int) -> None:
    blocks = random_blocks(kind, n, seed)
    packed = pack_superblocks(blocks, kind)
    assert packed.shape == (n, kind.nbytes)
    theirs = torch.from_numpy(gguf.dequantize(packed.numpy(), gguf.GGMLQuantizationType[kind.name]))
    assert torch.equal(blocks.decode(kind).view(n, -1), theirs)
    back = unpack_superblocks(packed, kind)
    assert all(torch.equal(getattr(back, name), value) for name, value in vars(blocks).items())


@pytest.mark.parametrize("name", TYPES)
def test_sizes_and_widths_of_types_are_those_of_llama_cpp(name: str) -> None:
    block, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    assert (TYPES[name].block, TYPES[name].nbytes) == (block, nbytes)
    assert set(LAYOUTS) == set(get_args(GgmlLayout))


@KINDS
@settings(max_examples=15, deadline=None)
@given(
    rows=st.integers(1, 9),
    blocks=st.integers(1, 3),
    size=st.sampled_from([1e-3, 0.02, 1.0, 1e3]),
    shift=st.sampled_from([-3.0, 0.0, 3.0]),
    seed=st.integers(0, 2**32),
)
def test_whatever_the_weights_the_reader_sees_what_was_measured(
    kind: SuperType, rows: int, blocks: int, size: float, shift: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    w = size * (torch.randn(rows, 256 * blocks, generator=generator) + shift)
    w[0, :64] = 0
    weight = quantize_weight(w, config(kind.name))
    decoded = weight.dequantize()
    assert torch.equal(decoded, as_llama_cpp_reads(weight, kind.name))
    assert relative_error(w, weight) < 1.5 * 4.0 ** (1 - kind.bits)
    assert sum(weight_histogram(w, weight)) == w.numel()


@pytest.mark.parametrize(
    ("name", "most"),
    [("Q2_K", 0.0676), ("Q3_K", 0.0211), ("Q4_K", 0.00494), ("IQ4_NL", 0.0060), ("Q5_K", 0.00124), ("Q6_K", 0.000302)],
)
def test_normal_weights_lose_what_was_measured_and_no_more(name: str, most: float) -> None:
    w = torch.randn(64, 1024, generator=torch.Generator().manual_seed(1))
    assert 0.9 * most < relative_error(w, quantize_weight(w, config(name))) < most


def rounded_to_the_range(w: torch.Tensor, kind: SuperType) -> torch.Tensor:
    """Decode plain rounding: codes spread from the least to the largest weight of a group, scales left as they are."""
    x = w.view(-1, kind.group_size)
    if kind.zero:
        step, low = x.abs().amax(1, keepdim=True) / (kind.zero - 0.5), 0.0
        return ((x / step).round().clamp(-kind.zero, kind.zero - 1) * step).view(w.shape)
    low = x.amin(1, keepdim=True)
    step = (x.amax(1, keepdim=True) - low) / ((1 << kind.bits) - 1)
    return (((x - low) / step).round() * step + low).view(w.shape)


@KINDS
def test_the_search_beats_rounding_although_its_scales_are_rounded_too(kind: SuperType) -> None:
    w = laplace(32, 512)
    plain = float((rounded_to_the_range(w, kind) - w).square().sum() / w.square().sum())
    assert relative_error(w, quantize_weight(w, config(kind.name))) < 0.97 * plain


def laplace(rows: int, cols: int) -> torch.Tensor:
    u = torch.rand(rows, cols, generator=torch.Generator().manual_seed(2)) - 0.5
    return -u.sign() * torch.log1p(-2 * u.abs())


@KINDS
def test_columns_that_matter_lose_less(kind: SuperType) -> None:
    w = laplace(32, 512)
    importance = torch.ones(512)
    importance[::4] = 50.0
    errors = [
        (quantize_weight(w, config(kind.name), importance=h).dequantize() - w).square().mean(0)[::4].sum()
        for h in (importance, None)
    ]
    assert errors[0] < 0.9 * errors[1]


@KINDS
def test_codes_that_were_learnt_are_taken_over(kind: SuperType) -> None:
    w = laplace(16, 512)
    learnt = quantize_weight(w, config(kind.name).learnt)
    fmt = replace(learnt.format, layout=kind.layout)
    blocks = to_superblocks(learnt, fmt)
    difference = (blocks.dequantize() - learnt.dequantize()).square().mean()
    lost = (learnt.dequantize() - w).square().mean()
    assert difference < (0.06 if kind.bits < 5 else 0.25) * lost


def test_kernels_find_the_sums_and_codes_of_the_reference() -> None:
    x, h = laplace(40, 32), torch.rand(40, 32, generator=torch.Generator().manual_seed(3))
    inverse, offset = 4 / x.abs().amax(1), x.amin(1).abs()
    arguments: Any = (inverse, offset, (-4, 3))
    assert torch.equal(compiled.group_codes(x, *arguments), reference.group_codes(x, *arguments))
    for ours, theirs in zip(compiled.group_sums(x, h, *arguments), reference.group_sums(x, h, *arguments), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_bytes_do_not_depend_on_the_number_of_threads() -> None:
    w, threads = laplace(600, 1024), torch.get_num_threads()
    found = []
    for count in (1, 2):
        torch.set_num_threads(count)
        found.append(quantize_weight(w, config("Q4_K")).ggml_blocks())
    torch.set_num_threads(threads)
    assert torch.equal(*found)


def test_blocks_of_the_code_book_decode_as_the_package_gguf_decodes_them() -> None:
    w = laplace(8, 96)
    weight = quantize_weight(w, config("IQ4_NL"))
    assert torch.equal(weight.dequantize_ggml(), as_llama_cpp_reads(weight, "IQ4_NL"))
    assert tuple(gguf.quants.IQ4_NL.kvalues) == tuple(integer_levels("IQ4_NL", 4)[0].int().tolist())
    assert relative_error(w, weight) < 0.85 * relative_error(w, quantize_weight(w, config("Q4_0")))


def test_layouts_of_llama_cpp_are_refused_where_they_do_not_fit() -> None:
    with pytest.raises(InvalidConfigError, match="Q3_K has 3 bits and groups of 16, not 4 and 64"):
        WeightConfig(layout="Q3_K")
    with pytest.raises(InvalidConfigError, match="whole super-blocks of 256, not of 300"):
        quantize_weight(torch.ones(2, 300), config("Q4_K"))
    with pytest.raises(InvalidConfigError, match="format gguf alone holds"):
        AS_ASKED.adapt(QuantizationConfig(config("Q6_K")))
    w = torch.ones(2, 256)
    w[1, 3] = torch.nan
    with pytest.raises(NumericsError, match="row 1"):
        quantize_weight(w, config("Q2_K"))
