"""The wire model and the core agree on what is asked when nothing is said, and on the limits."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from app.plans.translate import quantization_config
from nupes_client.schemas.specs import BITS_HELD, WEIGHTS_ALONE, CalibrationSpec, Format, JobSpec, ModelRef, WeightSpec
from nupes_core.config import (
    ActivationConfig,
    CalibrationConfig,
    ExponentConfig,
    QuantizationConfig,
    TrainingConfig,
    WeightConfig,
)
from nupes_core.errors import InvalidConfigError
from nupes_core.formats import FORMATS
from nupes_core.plan import plan_headers


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


LLAMA = json.loads((Path(__file__).parents[2] / "examples/booklm/config.json").read_text())
CONFIGS = {"onnx": {"model_type": "bert"}}
"""Of a model that a format is written for, where that is no llama."""

WEIGHTS: tuple[dict[str, Any], ...] = (
    {},
    *({"exponent": {"scope": scope}} for scope in ("global", "row", "group")),
    {"exponent": {"mode": "fixed", "value": 1.0}},
    *({"layout": layout} for layout in ("signed", "midrise", "paper")),
    *({"group_size": size} for size in (-1, 1, 32, 100, 1 << 20)),
    {"scale_bits": 4},
    {"scale_bits": 12},
)
OVERRIDES: tuple[dict[str, Any], ...] = (
    *({"match": "q_proj", "bits": bits} for bits in range(2, 9)),
    {"match": "q_proj", "bits": 3, "skip": True},
    {"match": "q_proj", "group_size": 24},
    {"match": "q_proj", "skip": True},
)
OTHERS: tuple[dict[str, Any], ...] = (
    *({"weights": weights} for weights in WEIGHTS),
    *({"layers": {"overrides": [override]}} for override in OVERRIDES),
    {"layers": {"embeddings": True, "exclude": []}},
    {"optimize": {"mode": "data_driven", "tweak_norms": True}},
)
ACTIVATIONS: tuple[dict[str, Any], ...] = (
    {},
    {"activations": {}},
    {"activations": {"bits": 4, "grid": "power", "scaling": "static"}, "calibration": {}},
)
WISHES: tuple[dict[str, Any], ...] = tuple(
    {**other, **activations, "weights": {**other.get("weights", {}), "bits": bits}}
    for bits, other, activations in product(range(2, 9), OTHERS, ACTIVATIONS)
)


def refused_at(name: str, wish: dict[str, Any]) -> set[tuple[int | str, ...]]:
    """Return the places that the schema finds fault with."""
    try:
        full_spec(**wish, formats=[name])
    except ValidationError as refused:
        return {error["loc"] for error in refused.errors()}
    return set()


def core_takes(name: str, wish: dict[str, Any]) -> bool:
    """Ask the format itself, for a model that it is written for; what is asked is read with a format that takes all."""
    config = quantization_config(full_spec(**wish, formats=["nupes"]))
    try:
        plan_headers({}, CONFIGS.get(name, LLAMA), config, formats=[name])
    except InvalidConfigError:
        return False
    return True


@pytest.mark.parametrize("name", FORMATS)
def test_the_schema_refuses_of_a_format_exactly_what_the_core_does(name: str) -> None:
    taken = [core_takes(name, wish) for wish in WISHES]
    assert [refused_at(name, wish) for wish in WISHES] == [set() if held else {("formats",)} for held in taken]
    assert any(taken)
    assert all(taken) == (name not in BITS_HELD and name not in WEIGHTS_ALONE)


def test_the_formats_of_the_schema_are_those_of_the_core() -> None:
    assert set(get_args(Format)) == FORMATS.keys()


def test_all_that_the_formats_of_a_job_can_not_hold_is_said_at_once() -> None:
    overrides = [{"match": "q_proj", "bits": 3}, {"match": "k_proj", "bits": 8}]
    wish = {"weights": {"bits": 5}, "layers": {"overrides": overrides}, "activations": {}}
    with pytest.raises(ValidationError) as refused:
        full_spec(**wish, formats=["dense", "compressed-tensors", "gguf"])
    (error,) = refused.value.errors()
    assert error["loc"] == ("formats",)
    for words in (
        "compressed-tensors holds weights of 4 or 8 bits, and this job asks for 3 and 5",
        "compressed-tensors holds weights alone",
        "gguf holds weights alone",
    ):
        assert words in error["msg"]


def test_a_format_adds_nothing_to_what_is_refused_already() -> None:
    with pytest.raises(ValidationError) as refused:
        full_spec(weights={"bits": 9}, activations={"bits": 1}, formats=["compressed-tensors"])
    assert {error["loc"] for error in refused.value.errors()} == {("weights", "bits"), ("activations", "bits")}
