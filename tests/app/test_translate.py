"""The wire model and the core agree on what is asked when nothing is said, and on the limits."""

from __future__ import annotations

import pytest

from app.plans.translate import quantization_config
from nupes_client.schemas.jobs import JobSpec, ModelRef, WeightSpec
from nupes_core.config import ExponentConfig, QuantizationConfig, WeightConfig


def spec(**weights: object) -> JobSpec:
    return JobSpec(model=ModelRef(id="mdl_x"), weights=WeightSpec.model_validate(weights))


def test_an_empty_wish_is_the_default_of_the_core() -> None:
    assert quantization_config(spec()) == QuantizationConfig()


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({"bits": 2, "group_size": -1}, WeightConfig(bits=2, group_size=-1)),
        ({"scale_bits": 5}, WeightConfig(scale_bits=5)),
        (
            {"exponent": {"mode": "fixed", "value": 0.5, "scope": "group"}, "layout": "paper"},
            WeightConfig(exponent=ExponentConfig(mode="fixed", value=0.5, scope="group"), layout="paper"),
        ),
    ],
)
def test_every_setting_of_a_weight_reaches_the_core(weights: dict[str, object], expected: WeightConfig) -> None:
    assert quantization_config(spec(**weights)).weights == expected
