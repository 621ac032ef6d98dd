from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nupes_core.errors import InvalidConfigError
from nupes_core.quantizer import compiled, packing


@settings(deadline=None, max_examples=60)
@given(bits=st.integers(2, 12), count=st.integers(0, 200), seed=st.integers(0, 1000))
def test_unpacking_returns_what_was_packed_at_any_width_and_length(bits: int, count: int, seed: int) -> None:
    values = torch.randint(0, 1 << bits, (count,), generator=torch.Generator().manual_seed(seed))

    packed = packing.pack(values, bits)

    assert packed.dtype == torch.uint8
    assert len(packed) == -(-count * bits // 8)
    assert torch.equal(packing.unpack(packed, bits, count), values)


@settings(deadline=None, max_examples=60)
@given(bits=st.integers(2, 12), count=st.integers(1, 200), seed=st.integers(0, 1000))
def test_compiled_packing_writes_the_same_bytes(bits: int, count: int, seed: int) -> None:
    values = torch.randint(0, 1 << bits, (count,), generator=torch.Generator().manual_seed(seed))
    narrow = values.to(torch.uint8 if bits <= 8 else torch.uint16)

    packed = compiled.pack(narrow, bits)

    assert torch.equal(packed, packing.pack(values, bits))
    assert torch.equal(compiled.unpack(packed, bits, count).long(), values)


def test_the_first_value_takes_the_lowest_bits() -> None:
    assert packing.pack(torch.tensor([0b101, 0b011, 0b110]), 3).tolist() == [0b10_011_101, 0b1]


def test_rows_of_whole_bytes_can_be_concatenated() -> None:
    q, k = torch.randint(0, 8, (4, 16)), torch.randint(0, 8, (2, 16))

    assert torch.equal(packing.pack(torch.cat([q, k]), 3), torch.cat([packing.pack(q, 3), packing.pack(k, 3)]))


@pytest.mark.parametrize("bits", [0, 17])
def test_a_width_that_no_value_has_is_named(bits: int) -> None:
    with pytest.raises(InvalidConfigError, match=f"{bits} bits"):
        packing.pack(torch.tensor([0]), bits)
