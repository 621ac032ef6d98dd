"""The wire model and the core agree on what is asked when nothing is said, and on the limits."""

from __future__ import annotations

import pytest

from app.plans.translate import quantization_config
from nupes_client.schemas.specs import CalibrationSpec, JobSpec, ModelRef, WeightSpec
from nupes_core.config import (
    ActivationConfig,
    CalibrationConfig,
    ExponentConfig,
    QuantizationConfig,
    TrainingConfig,
    WeightConfig,
)


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


def full_spec(**fields: object) -> JobSpec:
    return JobSpec.model_validate({"model": {"id": "mdl_x"}, **fields})


def test_every_stage_of_a_data_driven_job_reaches_the_core() -> None:
    stages = {
        "error_feedback": False,
        "learn_codes": False,
        "learn_exponent": False,
        "learn_scales": False,
        "tweak_norms": True,
        "steps": 7,
        "learning_rate": 0.5,
        "batch_size": 3,
    }
    config = quantization_config(
        full_spec(optimize={"mode": "data_driven", **stages}, calibration={"samples": 9, "length": 33})
    )
    assert config.optimize == "data_driven"
    assert config.training == TrainingConfig(**stages)  # type: ignore[arg-type]
    assert config.calibration == CalibrationConfig(samples=9, length=33)


def test_every_setting_of_activations_reaches_the_core() -> None:
    wish = {"bits": 6, "grid": "power", "scaling": "static", "range": "percentile", "smooth": False}
    config = quantization_config(full_spec(activations=wish, calibration={}))
    assert config.activations == ActivationConfig(**wish)  # type: ignore[arg-type]


def test_defaults_of_stages_calibration_and_activations_are_those_of_the_core() -> None:
    config = quantization_config(full_spec(optimize={"mode": "data_driven"}, activations={}))
    assert config == QuantizationConfig(optimize="data_driven", activations=ActivationConfig())


def test_a_data_driven_job_without_data_writes_its_own_and_says_so() -> None:
    resolved = full_spec(optimize={"mode": "data_driven"}, calibration=None)
    assert resolved.calibration == CalibrationSpec()
    assert full_spec(**resolved.model_dump(exclude={"model"})) == resolved


@pytest.mark.parametrize(
    "fields",
    [
        {"activations": {}},
        {"activations": {}, "calibration": {}},
        {"activations": {"scaling": "static", "smooth": False}, "calibration": {"samples": 4}},
    ],
)
def test_activations_take_data_where_it_helps_and_need_none_where_scales_are_dynamic(fields: dict[str, object]) -> None:
    assert (full_spec(**fields).calibration is None) == ("calibration" not in fields)
