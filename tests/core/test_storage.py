from __future__ import annotations

import json
import subprocess
import sys

import pytest

from nupes_core.config import ExponentConfig, WeightConfig
from nupes_core.errors import InvalidConfigError
from nupes_core.storage import WeightFormat, resolve_format, tensor_specs, weight_nbytes


@pytest.mark.parametrize("bits", range(2, 9))
def test_bits_per_weight_are_those_of_codes_and_words_and_a_64th_at_most(bits: int) -> None:
    fmt = resolve_format(256, 256, WeightConfig(bits=bits))

    assert 0 <= 8 * weight_nbytes(fmt) / (256 * 256) - (bits + 8 / 64) <= 1 / 64


def test_a_format_survives_json() -> None:
    fmt = resolve_format(100, 172, WeightConfig(bits=3, exponent=ExponentConfig(scope="group")))

    assert WeightFormat(**json.loads(json.dumps(fmt.to_dict()))) == fmt


def test_wide_rows_have_a_base_each_and_narrow_ones_share() -> None:
    assert resolve_format(64, 2048, WeightConfig()).block_rows == 1
    assert resolve_format(64, 64, WeightConfig()).block_rows > 8


def test_auto_takes_midrise_for_two_bits_only() -> None:
    layouts = [resolve_format(8, 64, WeightConfig(bits=bits)).layout for bits in range(2, 9)]

    assert layouts == ["midrise"] + ["signed"] * 6


def test_a_group_never_exceeds_the_row() -> None:
    assert resolve_format(8, 40, WeightConfig(group_size=64)).group_size == 40
    assert resolve_format(8, 40, WeightConfig(group_size=-1)).group_size == 40


def test_rows_of_fused_projections_concatenate() -> None:
    config = WeightConfig(bits=3, group_size=16)
    parts = [resolve_format(rows, 256, config) for rows in (256, 64, 64)]
    fused = resolve_format(384, 256, config)

    for suffix, (shape, _) in tensor_specs(fused).items():
        assert sum(tensor_specs(part)[suffix][0][0] for part in parts) == shape[0]


@pytest.mark.parametrize("scale_bits", [3, 13])
def test_a_word_that_is_too_short_or_long_is_refused(scale_bits: int) -> None:
    with pytest.raises(InvalidConfigError, match=f"scale_bits is {scale_bits}"):
        WeightConfig(scale_bits=scale_bits)


def test_a_choice_of_exponents_needs_room_in_the_word() -> None:
    with pytest.raises(InvalidConfigError, match="6 to 12"):
        WeightConfig(scale_bits=5, exponent=ExponentConfig(scope="group"))


def test_an_empty_matrix_is_refused() -> None:
    with pytest.raises(InvalidConfigError, match=r"\(0, 8\)"):
        resolve_format(0, 8, WeightConfig())


def test_sizes_need_neither_torch_nor_numpy() -> None:
    code = "import sys, nupes_core.storage; print('torch' in sys.modules, 'numpy' in sys.modules)"

    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["False", "False"]
